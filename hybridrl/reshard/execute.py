"""Carries a table out once, by the best executor where its targets are.

Whoever writes the same table again and again keeps what `executors.base.best(device).prepare` returns.
"""

from collections.abc import Sequence

import torch

from hybridrl.reshard.block_fp8 import BlockFP8
from hybridrl.reshard.executors.base import Prepared, Written, best
from hybridrl.reshard.table import Table


def copy(table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor | BlockFP8]) -> None:
    """Write every box.

    Args:
        sources, targets: in the order of the table, of any dimensions; all but the last count as rows.

    Raises:
        ValueError: as executors.base.Executor.prepare; nothing was written.
    """
    _prepared(table, sources, targets).write(sources, sums=False)


def copy_and_sum(
    table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor | BlockFP8]
) -> Written:
    """Write every box, and sum what was sent, not what arrived: a box that arrives damaged will show."""
    return _prepared(table, sources, targets).write(sources)


def _prepared(
    table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor | BlockFP8]
) -> Prepared:
    held = [target.values if isinstance(target, BlockFP8) else target for target in targets]
    return best(held[0].device if held else "cpu").prepare(table, sources, targets)
