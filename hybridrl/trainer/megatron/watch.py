"""The checks of a step that need what only trainer ranks hold: masks, log-probabilities, ratios."""

from collections.abc import Iterator, Mapping

import torch

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
from hybridrl.trainer.megatron.loaded import LoadedBatch


def masks(batch: RankBatch) -> Iterator[Finding | None]:
    """What is wrong with the tokens as they came from the engines."""
    for block in batch.blocks:
        length_N = torch.tensor(block.start_N).diff()
        seq_T = torch.arange(len(length_N)).repeat_interleave(length_N)
        tokens = Tokens(seq_T, torch.tensor(block.loss_mask_T), num_seqs=len(length_N))
        yield check_mask(tokens, torch.tensor(block.column("version")))
        yield check_rollout_logp(
            torch.tensor(block.token_T), torch.tensor(block.column("rollout_logp")), tokens
        )


def trains_on_all_samples(algorithm: AlgorithmConfig) -> bool:
    """Whether no answer is left out for its reward or length, so that the trained tokens are samples.

    What stays after such a choice may well be likelier under the reference: the wrong answers of a policy
    that seldom errs any more.
    """
    return algorithm.dynamic_sampling is None and not algorithm.drop_truncated


def divergence(loaded: LoadedBatch, reduce: Reduce) -> Iterator[Finding | None]:
    """What is wrong with the columns of the KL term. *Collective* over data-parallel ranks.

    The engine's column is of the policy that sampled, of whatever version, and at the sampling temperature.
    The trainer's stands for it only where it is of the same version. Called if `trains_on_all_samples`.
    """
    blocks = loaded.batch.blocks
    on_policy = all((block.trained("version") == loaded.step - 1).all() for block in blocks)
    policy = "old_logp" if on_policy and "old_logp" in loaded.columns else "rollout_logp"
    rollout_logp_H, policy_logp_H = loaded.held("rollout_logp"), loaded.held(policy)
    yield check_kl_sign(policy_logp_H, loaded.held("ref_logp"), loaded.tokens_H, rollout_logp_H, reduce)


def ratio(metrics: Mapping[str, float]) -> Iterator[Finding | None]:
    """What is wrong with the ratios of the first optimizer step of a batch."""
    yield check_first_ratio(metrics.get("actor/ratio_max_abs_err", 0.0))
