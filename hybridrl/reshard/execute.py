"""Chooses the executor for a device, and writes a table once.

To write the same table repeatedly, keep what `best(device).prepare` returns.
"""

import warnings
from collections.abc import Sequence
from functools import lru_cache

import torch

from hybridrl.reshard.block_fp8 import BlockFP8
from hybridrl.reshard.executors import native
from hybridrl.reshard.executors.base import Executor, Prepared, Written, find
from hybridrl.reshard.table import Table


def best(device: torch.device | str) -> Executor:
    """The fastest executor for tensors on a device. Warns once if the native one is not built."""
    if torch.device(device).type == "cuda":
        return find("triton")
    if native.is_built():
        return find("native")
    _warn_not_built()
    return find("torch_copy")


def copy(table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor | BlockFP8]) -> None:
    """Write every box.

    Args:
        sources, targets: tensors in the order of the table. All dimensions but the last count as rows.

    Raises:
        ValueError: as for executors.base.Executor.prepare; nothing was written.
    """
    _prepared(table, sources, targets).write(sources, sums=False)


def copy_and_sum(
    table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor | BlockFP8]
) -> Written:
    """Write every box, and return checksums of what was sent, so that damage on the way can be detected."""
    return _prepared(table, sources, targets).write(sources)


def _prepared(
    table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor | BlockFP8]
) -> Prepared:
    held = [target.values if isinstance(target, BlockFP8) else target for target in targets]
    return best(held[0].device if held else "cpu").prepare(table, sources, targets)


@lru_cache(maxsize=1)
def _warn_not_built() -> None:
    warnings.warn(
        "the native executor is not built, weight copies are several times slower: install a C compiler and "
        "run `pip install -e .` again",
        RuntimeWarning,
        stacklevel=3,
    )
