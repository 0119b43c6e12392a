"""Transfers into the memory of engines, prepared as tables with the tensors that they write."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from hybridrl.errors import SwapError
from hybridrl.layout.base import Layout
from hybridrl.layout.blocks import num_blocks
from hybridrl.reshard.agreement import Checksums
from hybridrl.reshard.block_fp8 import BlockFP8
from hybridrl.reshard.execute import best
from hybridrl.reshard.executors.base import Prepared, Written
from hybridrl.reshard.plan import CopyBox, Stack, Transfer
from hybridrl.reshard.rounds import Side
from hybridrl.reshard.table import Target, tabulate
from hybridrl.reshard.transports.base import SharedTensor, attach

Engine = tuple[Layout, Sequence[Mapping[str, SharedTensor]]]
"""An engine's layout, and for each of its ranks the exported tensors by name."""


class Copies:
    """Transfers of one rank into engine memory that it can map: attached once, run for every swap."""

    def __init__(
        self, transfers: Sequence[Transfer], engines: Sequence[Engine], via: tuple[int, int] | None = None
    ) -> None:
        """
        Args:
            via: (engine, engine rank) to read from; None: every write is given its source tensors. What an
                engine holds in FP8 is copied as it is.
        """
        self._table = tabulate(with_scales(transfers, engines) if via else transfers)
        find = attached if via else _target
        self._targets = [find(engines, name) for name in self._table.targets]
        self._held = {name: attached(engines, (*via, name)) for name in self._table.sources} if via else {}
        self._prepared: Prepared | None = None

    def write(self, tensors: Mapping[str, torch.Tensor]) -> Written:
        """Write every box; it is in the engines when this returns."""
        sources = [(self._held or tensors)[name] for name in self._table.sources]
        if self._prepared is None:
            device = sources[0].device if sources else "cpu"
            self._prepared = best(device).prepare(self._table, sources, self._targets)
        return self._prepared.write(sources)


def passed_on(transfers: Iterable[Transfer], engines: Sequence[Engine]) -> list[Copies]:
    """Copies from engines to other engines on the node, one per engine rank that is read from."""
    places: dict[tuple[int, int], list[Transfer]] = {}
    for transfer in transfers:
        assert transfer.via is not None
        places.setdefault(transfer.via, []).append(transfer)
    return [Copies(found, engines, place) for place, found in places.items()]


def forwarding(
    ways: Mapping[int, Iterable[Transfer]], engines: Sequence[Engine]
) -> tuple[dict[int, list[Transfer]], dict[str, torch.Tensor]]:
    """The transfers that read from engines, by peer, with names of sources that are unique over all engines
    and with those of scales; and the tensors of these names."""
    named = {
        peer: [replace(t, source_tensor=_held_name(t)) for t in with_scales(transfers, engines)]
        for peer, transfers in ways.items()
    }
    names = {name for transfers in named.values() for name in tabulate(transfers).sources}
    return named, {name: attached(engines, _place(name)) for name in names}


def _held_name(transfer: Transfer) -> str:
    assert transfer.via is not None
    engine, rank = transfer.via
    return f"{engine}/{rank}/{transfer.source_tensor}"


def _place(name: str) -> Target:
    engine, rank, tensor = name.split("/", 2)
    return int(engine), int(rank), tensor


def side(transfers: Sequence[Transfer], engines: Sequence[Engine], *, quantises: bool = True) -> Side:
    """One side of what one rank sends to another.

    Args:
        quantises: the sender quantises what is FP8 in the engines. False: it has FP8 itself, and `transfers`
            has those of scales.
    """
    table = tabulate(transfers)
    dtypes = tuple(engines[engine][1][rank][name].dtype for engine, rank, name in table.targets)
    scales = {
        number: (engine, rank, name + engines[engine][0].scales)
        for number, (engine, rank, name) in enumerate(table.targets)
        if quantises and dtypes[number] == torch.float8_e4m3fn
    }
    return Side(table, dtypes, scales)


def with_scales(transfers: Iterable[Transfer], engines: Sequence[Engine]) -> Iterator[Transfer]:
    """Transfers between engines, with those of the scales of their FP8 blocks."""
    for transfer in transfers:
        yield transfer
        if transfer.fp8:
            yield _of_scales(transfer, engines[transfer.target][0].scales)


def _of_scales(transfer: Transfer, suffix: str) -> Transfer:
    return replace(
        transfer,
        source_tensor=transfer.source_tensor + suffix,
        target_tensor=transfer.target_tensor + suffix,
        boxes=tuple(CopyBox(*map(_in_blocks, box)) for box in transfer.boxes),
        source_stack=_stack_of_blocks(transfer.source_stack),
        target_stack=_stack_of_blocks(transfer.target_stack),
        fp8=False,
    )


def _in_blocks(pair: tuple[int, int]) -> tuple[int, int]:
    return num_blocks(pair[0]), num_blocks(pair[1])


def _stack_of_blocks(stack: Stack) -> Stack:
    return Stack(stack.first, num_blocks(stack.step))


def attached(engines: Sequence[Engine], name: Target) -> torch.Tensor:
    engine, rank, tensor = name
    return attach(engines[engine][1][rank][tensor])


def checksums(written: Written, layouts: Sequence[Layout]) -> Checksums:
    """Checksums of what was written, with scales under the engines' names for them.

    Args:
        layouts: layout of each engine.
    """
    found = written.scale_checksums.items()
    scales = {(e, rank, name + layouts[e].scales): value for (e, rank, name), value in found}
    return written.checksums | scales


def weights(exported: Mapping[str, SharedTensor], layout: Layout) -> dict[str, SharedTensor]:
    """The tensors that an engine rank exported, without the scales of quantised weights."""
    scales = {name + layout.scales for name in exported}
    return {name: tensor for name, tensor in exported.items() if name not in scales}


def _target(engines: Sequence[Engine], name: Target) -> torch.Tensor | BlockFP8:
    engine, rank, tensor = name
    values = attached(engines, name)
    if values.dtype != torch.float8_e4m3fn:
        return values
    scales = tensor + engines[engine][0].scales
    if scales not in engines[engine][1][rank]:
        raise SwapError(
            f"{tensor} is FP8 and has no scales of 128 x 128 blocks",
            where=f"engine {engine}, rank {rank}",
            fix="serve bf16, or quantise in blocks",
        )
    return BlockFP8(values, attached(engines, (engine, rank, scales)))
