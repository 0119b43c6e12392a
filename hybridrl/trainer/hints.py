"""The batch as the teacher of self-distillation reads it: every trajectory with its hint.

Shape letters: N trajectories of a block, T its tokens.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hybridrl.batch import RankBatch, TokenBlock
from hybridrl.errors import ColumnError
from hybridrl.types import Hint


def with_hints(batch: RankBatch) -> RankBatch:
    """The batch with the hint of its group in each trajectory. Its trained tokens are the same, in the same
    order; its blocks have no columns.

    Raises:
        ColumnError: the prompts came without hints.
    """
    if batch.hints is None:
        raise ColumnError(
            f"the teacher of step {batch.step} reads a hint, and a prompt came without one",
            where="algorithm.hint",
            fix="remove it, or provide the hint where the prompts are made",
        )
    hints = {
        (int(b), int(row)): batch.hints[int(group)]
        for b, row, group in zip(batch.block_N, batch.row_N, batch.group_N, strict=True)
    }
    blocks = (
        _hinted(block, [hints.get((b, row)) for row in range(len(block))]) for b, block in _numbered(batch)
    )
    return replace(batch, blocks=tuple(blocks), hints=None, oldest=None)


def _numbered(batch: RankBatch) -> Iterator[tuple[int, TokenBlock]]:
    return enumerate(batch.blocks)


def _hinted(block: TokenBlock, hint_N: list[Hint | None]) -> TokenBlock:
    """
    Args:
        hint_N: None for a trajectory that is not in the batch.
    """
    at_H, id_H, added_N = [], [], np.zeros(len(block), np.int64)
    for row, hint in enumerate(hint_N):
        if hint is not None:
            at_H += [int(block.start_N[row]) + hint.after] * len(hint.token_ids)
            id_H += hint.token_ids
            added_N[row] = len(hint.token_ids)
    return TokenBlock(
        np.insert(block.token_T, at_H, id_H).astype(np.int32),
        block.start_N + np.concatenate([[0], np.cumsum(added_N)]),
        (block.prompt_tokens_N + added_N).astype(np.int32),
        np.insert(block.loss_mask_T, at_H, False),
    )
