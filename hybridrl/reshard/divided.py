"""Whether the shards of a trainer leave the FP8 blocks of an engine whole."""

from itertools import product

from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.blocks import refuse_shared_blocks
from hybridrl.layout.runs import Runs
from hybridrl.reshard.cells import Cells
from hybridrl.reshard.regions import covered


def refuse_divided_blocks(source: Layout, target: Layout) -> None:
    """Raise the error that planning a swap into `target` would raise on some rank.

    Raises:
        LayoutError: a block of the target is divided between source ranks.
    """
    wanted: dict[str, dict[tuple[Runs, Runs], list[Holding]]] = {}
    for held in target.holdings:
        if held.fp8:
            wanted.setdefault(held.param, {}).setdefault((held.rows, held.cols), []).append(held)
    cells = Cells(source)
    for param, of_param in wanted.items():
        for (patches, places), ((to_rows, to_cols), holdings) in product(
            cells.cuts(param).values(), of_param.items()
        ):
            if not any(_overlap(*place, held) for place, held in product(places, holdings)):
                continue
            for patch in patches:
                rows, cols = covered(patch.rows, to_rows), covered(patch.cols, to_cols)
                if rows and cols:
                    refuse_shared_blocks(rows, cols, to_rows, to_cols, param)


def _overlap(layers: range, experts: range, held: Holding) -> bool:
    """Whether a holding shares a layer and an expert with these."""
    return all(
        max(one.start, other.start) < min(one.stop, other.stop)
        for one, other in ((layers, held.layers), (experts, held.experts))
    )
