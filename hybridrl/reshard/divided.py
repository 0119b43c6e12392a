"""Whether the shards of a trainer leave the FP8 blocks of an engine whole."""

from hybridrl.layout.base import Layout
from hybridrl.layout.blocks import refuse_shared_blocks
from hybridrl.layout.runs import Runs
from hybridrl.reshard.cells import Cells, Patch
from hybridrl.reshard.regions import covered


def refuse_divided_blocks(source: Layout, target: Layout) -> None:
    """Raise the error that planning a swap into `target` would raise on some rank.

    Raises:
        LayoutError: a block of the target is divided between source ranks.
    """
    cells = Cells(source)
    seen: set[tuple[Patch, Runs, Runs]] = set()
    for held in target.holdings if any(held.fp8 for held in target.holdings) else ():
        for cell in cells.overlapping(held) if held.fp8 else ():
            key = cell.patch, held.rows, held.cols
            if key in seen:
                continue
            seen.add(key)
            rows, cols = covered(cell.patch.rows, held.rows), covered(cell.patch.cols, held.cols)
            if rows and cols:
                refuse_shared_blocks(rows, cols, held.rows, held.cols, held.param)
