"""The file of a checkpoint with the groups that were sampled and not yet trained on: scalars and tokens.

Shape letters: N trajectories.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from hybridrl.batch import TokenBlock, spans
from hybridrl.columns import COLUMNS, TURN_START

FILE = "saved_groups.safetensors"

_FIELDS = ("token_T", "start_N", "prompt_tokens_N", "loss_mask_T")


def write(
    folder: Path, scalars: Mapping[str, np.ndarray], blocks: Sequence[TokenBlock], *, whole: bool = False
) -> None:
    """
    Args:
        scalars: arrays; row_N and block_N say which row of which block each trajectory has.
        whole: other rows are written too, and all stay in their order, in which trainer ranks sum.
    """
    numbers_N, rows_N = scalars["block_N"], scalars["row_N"].copy()
    arrays = {f"scalar/{name}": values for name, values in scalars.items()}
    for number, block in enumerate(blocks):
        own_N = np.flatnonzero(numbers_N == number)
        kept = block if whole else select(block, rows_N[own_N].tolist())
        rows_N[own_N] = rows_N[own_N] if whole else np.arange(len(own_N))
        arrays |= {f"block/{number}/{name}": getattr(kept, name) for name in _FIELDS}
        arrays |= {f"block/{number}/column/{name}": values for name, values in _columns(kept).items()}
    arrays["scalar/row_N"] = rows_N
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, folder / FILE)


def read(folder: Path) -> tuple[dict[str, np.ndarray], list[TokenBlock]]:
    """Scalars and blocks of a checkpoint; both are empty if it holds no groups."""
    if not (folder / FILE).exists():
        return {}, []
    arrays = load_file(folder / FILE)
    scalars = {name.removeprefix("scalar/"): v for name, v in arrays.items() if name.startswith("scalar/")}
    count = sum(name.endswith("/start_N") for name in arrays)
    return scalars, [_block(arrays, f"block/{number}/") for number in range(count)]


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


def _columns(block: TokenBlock) -> dict[str, np.ndarray]:
    """Columns as plain arrays. One per prompt becomes its distinct arrays, and a number per trajectory."""
    found: dict[str, np.ndarray] = {}
    for name, values in block.columns.items():
        if COLUMNS[name].per != "prompt":
            found[name] = values
            continue
        distinct = {id(array): array for array in values}
        order = {key: number for number, key in enumerate(distinct)}
        found[f"{name}/of"] = np.array([order[id(array)] for array in values], np.int64)
        found |= {f"{name}/{order[key]}": array for key, array in distinct.items()}
    return found


def _block(arrays: Mapping[str, np.ndarray], prefix: str) -> TokenBlock:
    fields = {name: arrays[prefix + name] for name in _FIELDS}
    start = f"{prefix}column/"
    own = {name.removeprefix(start): values for name, values in arrays.items() if name.startswith(start)}
    columns = {name: values for name, values in own.items() if "/" not in name}
    for name in (key.removesuffix("/of") for key in own if key.endswith("/of")):
        columns[name] = np.empty(len(own[f"{name}/of"]), object)
        for n, number in enumerate(own[f"{name}/of"].tolist()):
            columns[name][n] = own[f"{name}/{number}"]
    return TokenBlock(**fields, columns=columns)
