"""Draws resharding.svg from a real plan: python docs/pictures/resharding.py

The gate and up projections of a model with two layers go from a trainer with TP2 x PP2 and three
data-parallel replicas to an engine with TP4 on another node. All ranks, rows and bytes in the picture are the
planner's.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import ModelSpec
from hybridrl.reshard.cells import Cell, Cells
from hybridrl.reshard.plan import CopyBox, Job, Transfer, plan
from hybridrl.reshard.regions import Regions, Wanted
from hybridrl.reshard.rounds import Bounds, BufferLayout, Round, Side, rounds
from hybridrl.reshard.shares import Part
from hybridrl.reshard.table import tabulate
from hybridrl.reshard.topology import Topology

FFN, HIDDEN = 768, 512
SPEC = ModelSpec(
    family="llama",
    hidden_size=HIDDEN,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    ffn_size=FFN,
    vocab_size=512,
    tied=False,
    qkv_bias=False,
    attention_out_bias=False,
    qk_norm=False,
    norm_eps=1e-6,
    rope_theta=1e4,
    max_positions=8,
    dtype="bfloat16",
)
SOURCE, TARGET = MegatronLayout(SPEC, tp=2, pp=2, dp=3), SGLangLayout(SPEC, tp=4)
NUM_RANKS = SOURCE.world_size + TARGET.world_size
JOB = Job(SOURCE, (TARGET,), Topology.separate(SOURCE.world_size, [TARGET.world_size], 12))
PARAM = "layers.*.gate_up"
BOUNDS = Bounds(message_bytes=128 << 10, round_bytes=128 << 10)

CELLS = (("#4c78a8", "white"), ("#9ecae9", "#222"), ("#54a24b", "white"), ("#a8d8a0", "#222"))
"""Fill and ink of each cell."""

SENDERS = {0: "#4c78a8", 2: "#f58518", 4: "#b279a2"}
TEXT, FAINT = "#222", "#777"
SCALE = 0.14
"""Pixels per row."""


def main() -> None:
    Path(__file__).with_name("resharding.svg").write_text(svg(), "utf-8")


def svg() -> str:
    """The text of the picture."""
    parts = (_cells(30, 30), _regions(290, 30), _shares(680, 30), _transfers(30, 360), _rounds(370, 360))
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="1000" height="650" viewBox="0 0 1000 650" '
    lines = [head + 'font-family="sans-serif" font-size="12">', _box(0, 0, 1000, 650, "white")]
    return "\n".join([*lines, *(line for part in parts for line in part), "</svg>"]) + "\n"


def _cells(x: float, y: float) -> Iterator[str]:
    yield from _heading(
        x, y, "1  Cells", "Every edge of a shard splits the weight.", "Replicas hold the same cell."
    )
    top = y + 70
    for layer in range(SPEC.num_layers):
        yield _text(x + 45 + 100 * layer, top - 10, f"layer {layer}", TEXT)
    for (cell, ranks), (fill, ink) in zip(_found_cells(), CELLS, strict=True):
        left = x + 100 * cell.layers.start
        for run in cell.patch.rows:
            yield _box(left, top + run.at * SCALE, 90, run.length * SCALE, fill)
            yield _text(left + 45, top + (run.at + run.length / 2) * SCALE, f"ranks {ranks}", ink)
    yield _text(x - 10, top + FFN / 2 * SCALE, "gate", FAINT, turn=True)
    yield _text(x - 10, top + 1.5 * FFN * SCALE, "up", FAINT, turn=True)


def _regions(x: float, y: float) -> Iterator[str]:
    first = "What an engine rank needs of a cell."
    yield from _heading(x, y, "2  Regions", first, "Here it has two boxes: gate and up.")
    (cell, ranks), top, zoom = _found_cells()[0], y + 70, SCALE * 1.3
    yield _text(x + 50, top - 10, f"cell of {ranks}", TEXT)
    for rank, fill in enumerate(("#4c78a8", "#7fa6cf")):
        left = x + 150 + 95 * rank
        yield _text(left + 40, top - 10, f"engine rank {rank}", TEXT)
        for box in _region(cell, rank):
            height, start, stop = box.shape[0] * zoom, top + box.source[0] * zoom, top + box.target[0] * zoom
            name = "gate" if box.source[0] < FFN // 2 else "up"
            yield _box(x, start, 100, height, fill)
            yield _text(x + 50, start + height / 2, f"{name}, {box.shape[0]} rows", "white")
            yield _box(left, stop, 80, height, fill)
            yield _text(left + 40, stop + height / 2, name, "white")
            yield _line(x + 100, start + height / 2, left, stop + height / 2)


def _shares(x: float, y: float) -> Iterator[str]:
    first = "Demands lie end to end on an interval,"
    yield from _heading(x, y, "3  Shares", first, "and each replica sends an equal share.")
    sizes = {rank: sum(t.elements for t in _found_transfers(rank)) for rank in range(2)}
    unit, left, top = 290 / sum(sizes.values()), x, y + 70
    for rank, size in sizes.items():
        yield _box(left, top, size * unit - 1, 34, "#ddd")
        yield _text(left + size * unit / 2, top + 17, f"engine rank {rank} needs", TEXT)
        left += size * unit
    left, top = x, top + 44
    for rank, colour in SENDERS.items():
        size = sum(t.elements for r in sizes for t in _found_transfers(r) if t.source_rank == rank)
        yield _box(left, top, size * unit - 1, 34, colour)
        yield _text(left + size * unit / 2, top + 17, f"rank {rank} sends", "white")
        left += size * unit
    yield _text(x, top + 54, "Each rank plans alone, and all get the same plan.", FAINT, anchor="start")


def _transfers(x: float, y: float) -> Iterator[str]:
    first = "What one rank copies into one tensor"
    yield from _heading(x, y, "4  Transfers", first, "of another rank: a list of boxes.")
    top, zoom, found = y + 76, SCALE * 2.2, [_found_transfers(rank) for rank in range(2)]
    for rank, transfers in enumerate(found):
        left = x + 145 * rank
        yield _text(left + 65, top - 12, f"engine rank {rank}", TEXT)
        for transfer, box in ((t, box) for t in transfers for box in t.boxes):
            start, height, sender = top + box.target[0] * zoom, box.shape[0] * zoom, transfer.source_rank
            yield _box(left, start, 130, height - 1, SENDERS[sender])
            yield _text(left + 65, start + height / 2, f"{box.shape[0]} rows of rank {sender}", "white")
    count, rows = sum(map(len, found)), FFN // 2
    yield _text(
        x,
        top + 140,
        f"{count} transfers with {_num_boxes(found)} boxes fill two tensors of",
        FAINT,
        anchor="start",
    )
    yield _text(x, top + 156, f"{rows} rows with {HIDDEN * 2} bytes each.", FAINT, anchor="start")


def _rounds(x: float, y: float) -> Iterator[str]:
    first = f"Boxes are packed as chunks into messages of at most {BOUNDS.message_bytes >> 10} KiB."
    yield from _heading(x, y, "5  Chunks and rounds", first, "A rank waits for one round at a time.")
    top, left = y + 76, x + 125
    for number in range(4):
        yield _text(left + 56 + 120 * number, top - 12, f"round {number}", TEXT)
    for row, (rank, found) in enumerate(_found_rounds().items()):
        sends = rank < SOURCE.world_size
        name = f"rank {rank} sends to" if sends else f"engine rank {rank - SOURCE.world_size} gets from"
        yield _text(left - 10, top + row * 38 + 14, name, TEXT, anchor="end")
        for number, each in enumerate(found):
            buffer = each.outgoing if sends else each.incoming
            yield from _buffer(left + 120 * number, top + row * 38, rank, buffer)
    last = "A bar is a message, its parts are chunks. The rank on the engine's device receives."
    yield _text(x, top + 206, last, FAINT, anchor="start")


def _buffer(x: float, y: float, rank: int, buffer: BufferLayout) -> Iterator[str]:
    unit = 112 / BOUNDS.message_bytes
    for span in buffer.spans:
        sender, engine = (rank, span.peer) if rank < SOURCE.world_size else (span.peer, rank)
        for chunk in buffer.chunks:
            size = chunk.shape[0] * chunk.shape[1] * chunk.dtype.itemsize
            yield _box(x + chunk.start * unit, y, size * unit - 1, 28, SENDERS[sender])
        name = f"engine {engine - SOURCE.world_size}" if rank == sender else f"rank {sender}"
        yield _text(x + (span.start + span.stop) / 2 * unit, y + 14, name, "white")


def _num_boxes(found: list[list[Transfer]]) -> int:
    return sum(len(transfer.boxes) for transfers in found for transfer in transfers)


def _region(cell: Cell, target_rank: int) -> tuple[CopyBox, ...]:
    """The boxes that the first holder of a cell would copy, if it sent all that an engine rank needs."""
    held = next(held for held in TARGET.holdings if held.param == PARAM and target_rank in held.ranks)
    return Regions().region(cell, 0, Wanted(0, 0, 0, held), Part(0, 1, 1)).boxes


def _found_cells() -> list[tuple[Cell, str]]:
    """The cells of the weight, each with the ranks that hold it."""
    found: dict[str, Cell] = {}
    for rank in range(SOURCE.world_size):
        for param, cell in Cells(SOURCE).of_rank(rank):
            if param == PARAM:
                ranks = sorted(rank for held in cell.holdings for rank in held.ranks)
                found[", ".join(map(str, ranks))] = cell
    return [(cell, ranks) for ranks, cell in found.items()]


def _found_transfers(target_rank: int) -> list[Transfer]:
    """The transfers of the first cell to an engine rank."""
    found = plan(JOB, target=0, target_rank=target_rank)
    return [t for t in found if t.param == PARAM and t.source_rank in SENDERS]


def _found_rounds() -> dict[int, list[Round]]:
    """Rank of the communicator -> its rounds, if only the first cell is sent."""
    sides: dict[tuple[int, int], Side] = {}
    for rank in range(2):
        for sender in SENDERS:
            table = tabulate(t for t in _found_transfers(rank) if t.source_rank == sender)
            if len(table.boxes):
                sides[sender, SOURCE.world_size + rank] = Side(table, (torch.bfloat16,) * len(table.targets))
    found = {}
    for rank in (*SENDERS, SOURCE.world_size, SOURCE.world_size + 1):
        sends = {to: side for (sender, to), side in sides.items() if sender == rank}
        receives = {sender: side for (sender, to), side in sides.items() if to == rank}
        found[rank] = rounds(rank, NUM_RANKS, sends, receives, BOUNDS)
    return found


def _heading(x: float, y: float, title: str, *lines: str) -> Iterator[str]:
    yield f'<text x="{x}" y="{y}" font-size="15" font-weight="bold" fill="{TEXT}">{title}</text>'
    for number, line in enumerate(lines):
        yield f'<text x="{x}" y="{y + 18 + 15 * number}" fill="{FAINT}">{line}</text>'


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill="{colour}" stroke="white" stroke-width="1"/>'
    )


def _text(x: float, y: float, text: str, colour: str, *, anchor: str = "middle", turn: bool = False) -> str:
    turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
    place = f'x="{x:.1f}" y="{y:.1f}" dominant-baseline="middle" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}"{turned}>{text}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{FAINT}" stroke-width="1"/>'
    )


if __name__ == "__main__":
    main()
