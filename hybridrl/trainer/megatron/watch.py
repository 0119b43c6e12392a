"""The checks of a step that need what only trainer ranks hold: masks, log-probabilities, ratios."""

from collections.abc import Iterator, Mapping

import torch

from hybridrl.algorithms.base import Tokens
from hybridrl.algorithms.guards import Finding, check_first_ratio, check_kl_sign, check_mask
from hybridrl.batch import RankBatch
from hybridrl.trainer.megatron.loaded import LoadedBatch


def masks(batch: RankBatch) -> Iterator[Finding | None]:
    """Of the tokens as they came from the engines."""
    for block in batch.blocks:
        mask_T = torch.tensor(block.loss_mask_T)
        tokens = Tokens(torch.zeros(len(mask_T), dtype=torch.int64), mask_T, num_seqs=1)
        yield check_mask(tokens, torch.tensor(block.version_T), torch.tensor(block.rollout_logp_T))


def divergence(batch: RankBatch, loaded: LoadedBatch) -> Iterator[Finding | None]:
    """Of policy and reference, where both columns are there. On answers of an older policy, its mean may well
    be below 0."""
    on_policy = all((block.version_T[block.loss_mask_T] == batch.step - 1).all() for block in batch.blocks)
    if on_policy and {"old_logp", "ref_logp"} <= loaded.columns.keys():
        yield check_kl_sign(loaded.held("old_logp"), loaded.held("ref_logp"), loaded.tokens_H)


def ratio(metrics: Mapping[str, float]) -> Iterator[Finding | None]:
    """Of the first optimizer step of a batch."""
    yield check_first_ratio(metrics.get("actor/ratio_max_abs_err", 0.0))
