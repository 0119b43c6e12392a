"""Block FP8: which weights an engine quantises in blocks of 128 x 128, and which sizes divide into blocks.

Blocks are counted from the first row and column of a parameter, of each expert's own if experts have it. An
engine's tensor begins every part of a parameter with a block, so it has the same blocks.
"""

from collections.abc import Iterator

from hybridrl.errors import LayoutError
from hybridrl.layout.runs import Run, Runs
from hybridrl.layout.sharding import Held
from hybridrl.models.table import Parameter, Site

BLOCK = 128
"""Rows and columns of a block."""

FP8_BYTES = 1 + 4 / BLOCK**2
"""Bytes of a quantised weight, with its share of the float32 scale of a block."""

_FUSED = ("rows", "gate_up", "heads")
"""Shardings of tensors that consist of the parts of their row blocks."""


def is_quantised(parameter: Parameter) -> bool:
    """Whether engines quantise the parameter: the matrices of linear layers and experts, but not routers,
    embedding, output layer and vision tower."""
    name = parameter.name
    return parameter.cols is not None and name.startswith("layers.") and not name.endswith("router")


def unfit_blocks(parameter: Parameter, site: Site, held: Held, size: int) -> str:
    """Why SGLang refuses these sizes in block FP8, or cannot compute with them; "" if it can.

    Args:
        held: what one rank of `size` has of the parameter.
    """
    wrong = next(_unfit(parameter, site, held, size), "")
    ranks = f" on each of {size} ranks" if size > 1 else ""
    return wrong and f"{parameter.name} has {wrong}{ranks}, which are not whole blocks of {BLOCK}"


def _unfit(parameter: Parameter, site: Site, held: Held, size: int) -> Iterator[str]:
    # Columns: activations are quantised 128 at a time. Rows: SGLang asks for whole blocks where ranks share
    # rows, or a tensor has several parts. Other tensors may end within a block.
    if held.num_cols % BLOCK:
        yield f"{held.num_cols} columns"
    parts = _parts(parameter, site, held, size)
    if size > 1 or len(parts) > 1 or site.sharding == "whole":
        for rows in parts:
            if rows % BLOCK:
                yield f"a part of {rows} rows"
    if parameter.row.per_expert and held.num_rows % BLOCK:
        yield f"experts of {held.num_rows} rows"


def _parts(parameter: Parameter, site: Site, held: Held, size: int) -> list[int]:
    """Rows of the parts of a rank's tensor."""
    if site.sharding == "whole":  # a checkpoint begins each part with a block of its own
        return list(parameter.keep(site.blocks)[1].blocks[:-1])
    if site.sharding not in _FUSED:
        return []
    if site.sharding == "heads":
        q = parameter.blocks[0] // size
        return [q, *[(held.num_rows - q) // 2] * 2]
    return [rows // size for rows in parameter.blocks]


def refuse_shared_blocks(rows: Runs, cols: Runs, wanted_rows: Runs, wanted_cols: Runs, name: str) -> None:
    """
    Args:
        rows, cols: what one source rank has of what a target rank wants; `local` is not read.
        wanted_rows, wanted_cols: what the target rank wants.
        name: canonical name of the parameter.

    Raises:
        LayoutError: a block is divided between source ranks, so that none of them can compute its scale.
    """
    for what, mine, wanted in (("rows", rows, wanted_rows), ("columns", cols, wanted_cols)):
        for run in mine:
            if run.at % BLOCK or not _ends_a_block(run, wanted):
                raise LayoutError(
                    f"trainer ranks divide {name} within a block of {BLOCK} x {BLOCK}, at {what} {run.at} to "
                    f"{run.at + run.length - 1}: no rank has all numbers that the block's scale is made of",
                    fix="use a smaller actor.parallel.tp (and backend: megatron), or rollout.precision: bf16",
                )


def _ends_a_block(run: Run, wanted: Runs) -> bool:
    end = run.at + run.length
    return end % BLOCK == 0 or any(end == other.at + other.length for other in wanted)


def part_in_blocks(start: int, stop: int, length: int) -> tuple[int, int]:
    """Rows [start, stop) of `length` for blocks [start, stop); the last block may be shorter."""
    return min(start * BLOCK, length), min(stop * BLOCK, length)


def num_blocks(length: int) -> int:
    return -(-length // BLOCK)
