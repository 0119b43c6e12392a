"""Rows of token blocks, and where the trajectories of a batch are."""

from collections.abc import Sequence

import numpy as np

from hybridrl.batch import RankBatch, TokenBlock, spans
from hybridrl.columns import COLUMNS, TURN_START


def select(block: TokenBlock, rows: Sequence[int]) -> TokenBlock:
    """The given trajectories, in the given order, as a block of its own."""
    rows_N = np.asarray(rows, np.int64)
    first_N, length_N = block.start_N[rows_N], np.diff(block.start_N)[rows_N]
    start_N = np.concatenate([[0], np.cumsum(length_N, dtype=np.int64)])
    token_T = spans(first_N, length_N)
    picks = {"token": token_T, "prompt": rows_N}
    turn_start = block.columns.get(TURN_START)
    if turn_start is not None:
        turn_N = np.searchsorted(turn_start, first_N)
        turns_N = np.searchsorted(turn_start, first_N + length_N) - turn_N
        picks["turn"] = spans(turn_N, turns_N)
    columns = {name: values[picks[COLUMNS[name].per]] for name, values in block.columns.items()}
    if turn_start is not None:
        columns[TURN_START] += np.repeat(start_N[:-1] - first_N, turns_N)
    return TokenBlock(
        block.token_T[token_T], start_N, block.prompt_tokens_N[rows_N], block.loss_mask_T[token_T], columns
    )


def trajectory(batch: RankBatch, index: int) -> tuple[TokenBlock, slice]:
    """The block of trajectory `index` and where its tokens are in it."""
    block = batch.blocks[int(batch.block_N[index])]
    return block, block.row(int(batch.row_N[index]))
