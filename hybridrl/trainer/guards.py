"""Checks of a step that need data which only trainer ranks hold: masks, log-probabilities, ratios.

`agreement` measures how far the engine's probabilities of sampled tokens are from the trainer's.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from hybridrl.algorithms.base import Reduce, Tokens
from hybridrl.algorithms.guards import (
    Finding,
    check_first_ratio,
    check_kl_sign,
    check_mask,
    check_rollout_logp,
)
from hybridrl.batch import RankBatch
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.trainer.loaded import LoadedBatch


def masks(batch: RankBatch) -> Iterator[Finding | None]:
    """Findings about masks and log-probabilities as the engines sent them."""
    for block in batch.blocks:
        length_N = torch.tensor(block.start_N).diff()
        seq_T = torch.arange(len(length_N)).repeat_interleave(length_N)
        tokens = Tokens(seq_T, torch.tensor(block.loss_mask_T), num_seqs=len(length_N))
        yield check_mask(tokens, torch.tensor(block.column("version")))
        yield check_rollout_logp(
            torch.tensor(block.token_T), torch.tensor(block.column("rollout_logp")), tokens
        )


def trains_on_all_samples(algorithm: AlgorithmConfig) -> bool:
    """Whether no answer is dropped for its reward or length, so that the trained tokens are fair samples.

    Otherwise the remaining answers may well be likelier under the reference than under the policy, and the
    sign of the KL says nothing: wrong answers of a policy that rarely errs are an example.
    """
    return algorithm.dynamic_sampling is None and not algorithm.drop_truncated


def divergence(loaded: LoadedBatch, reduce: Reduce) -> Iterator[Finding | None]:
    """Findings about the columns of the KL term. *Collective* over data-parallel ranks.

    rollout_logp is of the policy version that sampled, at the sampling temperature. old_logp replaces it only
    if all tokens were sampled by the present version. Call this only if `trains_on_all_samples`.
    """
    blocks = loaded.batch.blocks
    on_policy = all((block.trained("version") == loaded.step - 1).all() for block in blocks)
    policy = "old_logp" if on_policy and "old_logp" in loaded.columns else "rollout_logp"
    rollout_logp_H, policy_logp_H = loaded.held("rollout_logp"), loaded.held(policy)
    yield check_kl_sign(policy_logp_H, loaded.held("ref_logp"), loaded.tokens_H, rollout_logp_H, reduce)


def ratio(metrics: Mapping[str, float]) -> Iterator[Finding | None]:
    """Findings about the ratios of the first optimizer step of a batch."""
    yield check_first_ratio(metrics.get("actor/ratio_max_abs_err", 0.0))


def agreement(rollout_logp: Tensor, old_logp: Tensor, reduce: Reduce) -> dict[str, float]:
    """Differences and correlation over the trained tokens of all data-parallel ranks, under verl's names.

    *Collective* over the data-parallel ranks.

    Args:
        rollout_logp, old_logp: log-probabilities of engine and trainer for the tokens of this rank.
    """
    log_p, log_q = rollout_logp.double(), old_logp.double()
    p, q = log_p.exp(), log_q.exp()
    gap = (p - q).abs()
    terms = (torch.ones_like(p), gap, gap.square(), p, q, p.square(), q.square(), p * q)
    n, gaps, gap_squares, sum_p, sum_q, pp, qq, pq = reduce.sum(
        torch.stack([t.sum() for t in terms])
    ).tolist()
    none = p.new_zeros(1)  # a rank may hold no token
    largest = torch.stack([torch.cat([none, gap]).max(), torch.cat([none, (log_p - log_q).abs()]).max()])
    gap_max, logp_gap_max = reduce.max(largest).tolist()
    count = max(n, 1.0)
    spread = max((n * pp - sum_p**2) * (n * qq - sum_q**2), 0.0) ** 0.5
    return {
        "training/rollout_probs_diff_mean": gaps / count,
        "training/rollout_probs_diff_max": gap_max,
        "training/rollout_probs_diff_std": max(gap_squares / count - (gaps / count) ** 2, 0.0) ** 0.5,
        "training/rollout_logp_diff_max": logp_gap_max,
        "training/rollout_actor_probs_pearson_corr": (n * pq - sum_p * sum_q) / spread if spread > 0 else 1.0,
    }
