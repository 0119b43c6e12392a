"""Other ways to move weights between two Megatron layouts on the same gloo processes.

MegatronResharding is Megatron-core's own. FullGather and RankZeroBroadcast are our implementations of what
frameworks around Megatron do, and their numbers are not those of any framework.
"""

import contextlib
import importlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

from hybridrl.hosts import cpu
from hybridrl.layout.base import instance
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.runs import whole
from hybridrl.layout.shard import Shard
from hybridrl.models.spec import parameters
from hybridrl.models.table import Parameter, Row, Site
from hybridrl.reshard.checksum import as_matrix
from hybridrl.reshard.transports import shm
from hybridrl.reshard.transports.base import SharedTensor


@dataclass(frozen=True)
class Swap:
    """A rank's part of a swap. Every contender reads `held` and writes `wanted`, which is shared memory."""

    source: MegatronLayout
    target: MegatronLayout
    rank: int
    held: Mapping[str, Tensor]
    wanted: Mapping[str, Tensor]
    exported: Mapping[str, SharedTensor]
    """Handles by which other processes reach `wanted`."""

    @classmethod
    def here(cls, source: MegatronLayout, target: MegatronLayout, dtype: torch.dtype) -> "Swap":
        """Make a swap with values that name their place in the model, and targets that no one wrote yet."""
        rank = dist.get_rank()
        held = {name: shard_values(shard, dtype) for name, shard in source.shards(rank).items()}
        wanted = {name: torch.zeros(shard.shape, dtype=dtype) for name, shard in target.shards(rank).items()}
        exported = {name: shm.export(tensor) for name, tensor in wanted.items()}
        return cls(source, target, rank, held, wanted, exported)


class Contender(Protocol):
    def prepare(self) -> None:
        """Everything that is done once. *Collective*."""
        ...

    def run(self) -> None:
        """Move the weights once; they are in place on this rank when it returns. *Collective*."""
        ...


def shard_values(shard: Shard, dtype: torch.dtype) -> Tensor:
    """Bits that follow from the element's place in the model; padding is 0."""
    tensor = torch.zeros(shard.shape, dtype=dtype)
    words = as_matrix(tensor).view({1: torch.int8, 2: torch.int16, 4: torch.int32}[dtype.itemsize])
    words = words if len(shard.shape) > 1 else words.T
    salt = zlib.crc32(shard.param.encode())
    for (at_row, at_col), (row, col), (rows, cols) in shard.boxes():
        row_tag = (torch.arange(at_row, at_row + rows) * 40503 + salt).to(words.dtype)
        col_tag = (torch.arange(at_col, at_col + cols) * 2749).to(words.dtype)
        torch.add(row_tag[:, None], col_tag, out=words[row : row + rows, col : col + cols])
    return tensor


class MegatronResharding:
    """megatron.core.resharding on modules whose parameters carry what Megatron's own layers set."""

    def __init__(self, swap: Swap, service: str) -> None:
        """
        Args:
            service: "nccl", batched point-to-point (here over gloo), or "gloo", through buffers on the host.
        """
        cpu.install()
        self._resharding: Any = importlib.import_module("megatron.core.resharding")
        self._swap, self._service_name = swap, service

    def prepare(self) -> None:
        swap = self._swap
        with _cuda_streams_stand_in():
            self._service = self._resharding.get_or_create_service(self._service_name)
            self._source = _module(swap.source, swap.rank, swap.held)
            self._target = _module(swap.target, swap.rank, swap.wanted)
            self._plan = self._resharding.build_centralized_reshard_plan(
                self._source, self._target, num_experts=swap.source.spec.num_experts or None
            )

    def run(self) -> None:
        with _cuda_streams_stand_in():
            self._resharding.execute_reshard_plan(self._plan, self._source, self._target, self._service)


class FullGather:
    """Parameter by parameter: to every stage, to every tensor-parallel rank, to HF form, sliced."""

    def __init__(self, swap: Swap) -> None:
        self._swap = swap

    def prepare(self) -> None:
        source = self._swap.source
        groups = _Groups(source)
        self._pp, self._tp = _opened(groups.pp), _opened(groups.tp)
        self._parts = _parts(self._swap, self._swap.rank // (source.tp * source.cp) % source.dp)

    def run(self) -> None:
        for part in self._parts:
            mine = part.shards[part.place]
            piece = self._swap.held.get(part.tensor)
            if piece is None:
                piece = torch.empty(mine.shape, dtype=part.dtype)
            if dist.get_world_size(self._pp) > 1:
                dist.broadcast(piece, part.owners[part.place], group=self._pp)
            if part.is_whole:
                part.slice(piece, self._swap.wanted)
                continue
            pieces = [torch.empty(shard.shape, dtype=part.dtype) for shard in part.shards]
            dist.all_gather(pieces, piece, group=self._tp)
            part.slice(part.join(pieces), self._swap.wanted)


class RankZeroBroadcast:
    """Parameter by parameter: collected on rank 0, in HF form to every rank, sliced."""

    def __init__(self, swap: Swap) -> None:
        self._swap = swap

    def prepare(self) -> None:
        self._parts = _parts(self._swap, 0)

    def run(self) -> None:
        for part in self._parts:
            full = self._collect(part)
            dist.broadcast(full, 0)
            part.slice(full, self._swap.wanted)

    def _collect(self, part: "_Part") -> Tensor:
        """The whole parameter on rank 0, and room for it on the others."""
        rank, held = self._swap.rank, self._swap.held
        owners = part.owners[:1] if part.is_whole else part.owners
        if rank != 0:
            if rank in owners:
                dist.send(held[part.tensor], 0)
            return torch.empty(part.shape, dtype=part.dtype)
        pieces = [
            held[part.tensor] if owner == 0 else torch.empty(shard.shape, dtype=part.dtype)
            for owner, shard in zip(owners, part.shards)
        ]
        for request in [dist.irecv(p, o) for p, o in zip(pieces, owners) if o != 0]:
            cast(dist.Work, request).wait()
        return pieces[0] if part.is_whole else part.join(pieces)


@dataclass(frozen=True)
class _Part:
    """A parameter of a dense model on one layer: one tensor on every tensor-parallel rank of its stage."""

    tensor: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    """The whole parameter: Hugging Face tensors, end to end."""

    place: int
    """The rank of this process in its tensor-parallel group."""

    owners: tuple[int, ...]
    """Ranks of the replica that hold it, by place."""

    shards: tuple[Shard, ...]
    """The parts by their place."""

    slices: tuple[tuple[str, Shard], ...]
    """Tensors of this process that want some of it."""

    is_whole: bool
    """Every owner holds all of it, in the order of the Hugging Face tensors."""

    def join(self, pieces: list[Tensor]) -> Tensor:
        full = torch.empty(self.shape, dtype=self.dtype)
        for piece, shard in zip(pieces, self.shards):
            _copy_boxes(full, piece, shard, to_full=True)
        return full

    def slice(self, full: Tensor, wanted: Mapping[str, Tensor]) -> None:
        for name, shard in self.slices:
            _copy_boxes(full, wanted[name], shard, to_full=False)


def _copy_boxes(full: Tensor, tensor: Tensor, shard: Shard, *, to_full: bool) -> None:
    full, tensor = full.reshape(len(full), -1), tensor.view(len(tensor), -1)
    for (at_row, at_col), (row, col), (rows, cols) in shard.boxes():
        there = full[at_row : at_row + rows, at_col : at_col + cols]
        here = tensor[row : row + rows, col : col + cols]
        (there if to_full else here).copy_(here if to_full else there)


def _parts(swap: Swap, dp: int) -> list[_Part]:
    """All of one data-parallel replica, in the order of the model table; the same on every rank."""
    source, dtype = swap.source, next(iter(swap.held.values())).dtype
    if source.spec.num_experts:
        raise ValueError("the gathering contenders know dense models only")
    place = swap.rank % source.tp
    wanted: dict[str, list[tuple[str, Shard]]] = {}
    for name, shard in swap.target.shards(swap.rank).items():
        wanted.setdefault(shard.param, []).append((name, shard))
    found = []
    for pp in range(source.pp):
        ranks = tuple(source.rank(tp, dp, pp) for tp in range(source.tp))
        by_place = [source.shards(rank) for rank in ranks]
        for name, (parameter, _) in _tensors(source, ranks[0]).items():
            shape = (parameter.num_rows,) if parameter.cols is None else (parameter.num_rows, parameter.cols)
            shards = tuple(shards[name] for shards in by_place)
            slices = tuple(wanted.get(shards[0].param, ()))
            everything = Shard(shards[0].param, shape, whole(parameter.num_rows), whole(parameter.cols or 1))
            is_whole = shards[0] == everything
            found.append(_Part(name, dtype, shape, place, ranks, shards, slices, is_whole))
    return found


def _tensors(layout: MegatronLayout, rank: int) -> dict[str, tuple[Parameter, Site]]:
    """Tensor name -> what the model table says about it."""
    rows = {
        (parameter.name, site.tensor): (parameter, site)
        for parameter in parameters(layout.spec)
        for site in (*_sites(layout, parameter.row), parameter.row.tied_copy)
        if site
    }
    return {
        instance(held.tensor, layer, i): rows[held.param, held.tensor]
        for held in layout.holdings
        if rank in held.ranks
        for layer in held.layers
        for i in range(len(held.experts) if "#" in held.tensor else 1)
    }


def _sites(layout: MegatronLayout, row: Row) -> tuple[Site, ...]:
    return layout.transformer_engine and row.transformer_engine or row.megatron


Ranks = tuple[tuple[int, ...], ...]


class _Groups:
    """The groups that a layout's ranks form, of each kind: every rank is in one of them."""

    def __init__(self, layout: MegatronLayout) -> None:
        stage, each = layout.world_size // layout.pp, layout.etp * layout.ep
        ranks = torch.arange(layout.world_size).view(layout.pp, layout.dp, layout.cp, layout.tp)
        experts = ranks.view(layout.pp, stage // each, layout.ep, layout.etp)
        self.tp = _listed(ranks.flatten(0, 2))
        self.dp = _listed(ranks.permute(0, 3, 1, 2).flatten(2).flatten(0, 1))
        self.pp = _listed(ranks.permute(1, 2, 3, 0).flatten(0, 2))
        self.ep = _listed(experts.permute(0, 1, 3, 2).flatten(0, 2))
        self.expt_tp = _listed(experts.flatten(0, 2))


def _listed(ranks: Tensor) -> Ranks:
    return tuple(map(tuple, ranks.tolist()))


@cache
def _opened(groups: Ranks) -> Any:
    """The one that this rank is in. *Collective*, all ranks. Kept, as each group has threads of its own."""
    return dist.new_subgroups_by_enumeration(list(map(list, groups)))[0]


def _module(layout: MegatronLayout, rank: int, tensors: Mapping[str, Tensor]) -> torch.nn.Module:
    """A tree of modules with these tensors as parameters, marked as Megatron's own layers mark theirs."""
    root = torch.nn.Module()
    groups = {kind: _opened(found) for kind, found in vars(_Groups(layout)).items()}
    root.pg_collection = cast(Any, SimpleNamespace(**groups))
    for name, (row, site) in _tensors(layout, rank).items():
        parameter: Any = torch.nn.Parameter(tensors[name], requires_grad=False)
        parameter.allreduce = not row.row.per_expert
        if site.sharding != "whole":
            parameter.tensor_model_parallel = True
            parameter.partition_dim = 1 if site.sharding == "columns" else 0
            parameter.partition_stride = len(row.blocks) if site.sharding == "rows" else 1
        _register(root, name, parameter)
    return root


def _register(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
    *path, last = name.split(".")
    for word in path:
        if word not in module._modules:
            module.add_module(word, torch.nn.Module())
        module = module.get_submodule(word)
    module.register_parameter(last, parameter)


class _Stream:
    """Work on a CPU is done when it returns: there is nothing to wait for."""

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


@contextlib.contextmanager
def _cuda_streams_stand_in() -> Iterator[None]:
    """Megatron's resharding names CUDA streams and pinned memory also where its tensors are on the CPU."""
    stands_in = {
        "Stream": _Stream,
        "current_stream": lambda *args: _Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
    }
    true = {name: getattr(torch.cuda, name) for name in stands_in}
    for name, stand_in in stands_in.items():
        setattr(torch.cuda, name, stand_in)
    try:
        with cpu.scope():
            yield
    finally:
        for name, function in true.items():
            setattr(torch.cuda, name, function)
