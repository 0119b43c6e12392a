"""Columns of a token block that an engine provides beside tokens and log-probabilities, from its answers."""

from collections.abc import Sequence

import numpy as np

from hybridrl.columns import HEAD_COLUMNS


def end_to_end(experts: Sequence[np.ndarray], start_N: np.ndarray) -> np.ndarray:
    """Column experts of all trajectories, in the smallest dtype that holds them.

    Args:
        experts: int [tokens of the trajectory but the last, L, K] of each trajectory.
        start_N: as in a TokenBlock.

    Raises:
        ValueError: an array does not have the length of its trajectory.
    """
    largest = max((int(found.max(initial=0)) for found in experts), default=0)
    dtype = np.uint8 if largest < np.iinfo(np.uint8).max else np.uint16
    shape = experts[0].shape[1:] if experts else (0, 0)
    experts_TLK = np.full((start_N[-1], *shape), np.iinfo(dtype).max, dtype)
    for start, end, found in zip(start_N, start_N[1:], experts, strict=False):
        if len(found) != end - start - 1:
            raise ValueError(f"experts of {len(found)} tokens for a trajectory of {end - start}")
        experts_TLK[start : end - 1] = found
    return experts_TLK


def head_columns(heads: Sequence[tuple[np.ndarray, np.ndarray]], mask_T: np.ndarray) -> dict[str, np.ndarray]:
    """Columns engine_head and engine_head_logp of a block.

    Args:
        heads: ids and log-probabilities, [tokens, K] each, of all answers in the order of the block.
        mask_T: bool [T], the tokens of these answers.
    """
    found = {}
    for name, parts, dtype in zip(
        HEAD_COLUMNS, zip(*heads, strict=True), (np.int32, np.float32), strict=True
    ):
        found[name] = np.zeros((len(mask_T), parts[0].shape[1]), dtype)
        found[name][mask_T] = np.concatenate(parts)
    return found
