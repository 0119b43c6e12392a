"""awex's planner (PyPI `awex`) on a workload's layouts: seconds for the plan of one rank.

awex names parameters as Hugging Face does, unfused, and describes a rank's shard as one box. Describing the
layouts that way is not part of the time.
"""

import contextlib
import importlib
import io
import sys
import time
import warnings
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import torch

from hybridrl.bench.workloads.swap_shapes import WORKLOADS
from hybridrl.layout.base import Layout, instance
from hybridrl.layout.runs import Runs
from hybridrl.models.spec import parameters

_MODULES = ("transfer.transfer_plan", "meta.weight_meta")


def measure(folder: str, workload: str) -> dict[str, Any]:
    """Runs in a process of its own.

    Args:
        folder: where `pip install --no-deps --target FOLDER awex` put it; "" if it is importable as it is.
    """
    warnings.simplefilter("ignore")
    if folder:
        sys.path.insert(0, folder)
    try:
        planner, meta = (importlib.import_module(f"awex.{name}") for name in _MODULES)
    except ImportError as error:
        return {"not_measured": f"awex cannot be imported: {error}"}
    job = next(w for w in WORKLOADS if w.name == workload)
    train, serve = _metas(meta, job.source), _metas(meta, job.engine)
    num_serving = job.num_engines * job.engine.world_size
    with contextlib.redirect_stdout(io.StringIO()):
        builder = planner.TransferPlanBuilder(num_serving, job.source.world_size, job.num_engines)
    seconds, operations = [], []
    for rank in (0, num_serving):  # the first engine rank, the first trainer rank
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):  # where awex logs
            plan = builder.build_local_transfer_plan(serve, train, rank)
        seconds.append(time.perf_counter() - start)
        operations.append(sum(map(len, plan.operations.values())))
    return {
        "receive_s": round(seconds[0], 3),
        "send_s": round(seconds[1], 3),
        "operations": operations,
        "tensors": len(serve),
        "shards": sum(len(meta.shards) for meta in (*train, *serve)),
    }


class _Box(NamedTuple):
    at: tuple[int, ...]
    shape: tuple[int, ...]


class _Tensor(NamedTuple):
    """A Hugging Face tensor, alike on some layers and for some experts."""

    pattern: str
    shape: tuple[int, ...]
    layers: range
    experts: range
    boxes: dict[_Box, list[int]]
    """Who holds what of it."""


def _metas(meta: Any, layout: Layout) -> list[Any]:
    """awex's ParameterMeta of every tensor."""
    found = []
    for tensor in _tensors(layout):
        replicas = range(min(map(len, tensor.boxes.values())))
        for layer in tensor.layers:
            for expert in tensor.experts:
                name = instance(tensor.pattern, layer, expert)
                copies = [
                    [_shard(meta, layout, name, box, ranks[i]) for box, ranks in tensor.boxes.items()]
                    for i in replicas
                ]
                shards = [shard for copy in copies for shard in copy]
                metas = [meta.ParameterReplicaMeta(shards=copy) for copy in copies]
                size = prod(tensor.shape)
                found.append(meta.ParameterMeta(name, size, tensor.shape, torch.bfloat16, shards, metas))
    return found


def _shard(meta: Any, layout: Layout, name: str, box: _Box, rank: int) -> Any:
    return meta.ParameterShardMeta(
        tp_rank=0,
        attn_tp_rank=0,
        pp_rank=0,
        ep_rank=0,
        ep_tp_rank=0,
        global_rank=rank,
        world_size=layout.world_size,
        engine_rank=0,
        name=name,
        shape=box.shape,
        numel=prod(box.shape),
        dtype=torch.bfloat16,
        global_offset=box.at,
    )


def _tensors(layout: Layout) -> Iterator[_Tensor]:
    for parameter in parameters(layout.spec):
        before = 0
        for pattern, rows in zip(parameter.row.hf, parameter.blocks, strict=False):
            yield from _block(layout, parameter.name, pattern, before, rows, parameter.cols)
            before += rows


def _block(
    layout: Layout, param: str, pattern: str, before: int, rows: int, cols: int | None
) -> Iterator[_Tensor]:
    found: dict[tuple[range, range], dict[_Box, list[int]]] = {}
    for held in layout.holdings:
        down = _interval(held.rows, before, before + rows) if held.param == param else None
        across = _interval(held.cols, 0, cols or 1)
        if down and across:
            at, shape = zip(down, across)
            box = _Box(at[:1], shape[:1]) if cols is None else _Box(at, shape)
            found.setdefault((held.layers, held.experts), {}).setdefault(box, []).extend(held.ranks)
    whole = (rows,) if cols is None else (rows, cols)
    for (layers, experts), boxes in found.items():
        yield _Tensor(pattern, whole, layers, experts, boxes)


def _interval(runs: Runs, first: int, stop: int) -> tuple[int, int] | None:
    """(offset, length) of what runs cover of [first, stop); None if that is nothing.

    Raises:
        ValueError: it is not one stretch, which awex could not say.
    """
    parts = [(max(r.at, first), min(r.at + r.length, stop)) for r in sorted(runs)]
    parts = [(a, b) for a, b in parts if a < b]
    if any(a[1] != b[0] for a, b in zip(parts, parts[1:])):
        raise ValueError("a shard of several stretches")
    return (parts[0][0] - first, parts[-1][1] - parts[0][0]) if parts else None
