"""One rank's part of a weight swap on one GPU, against the GPU's own copy speed and against plain copies.

Of a workload, one engine rank is replayed: everything that is written into it, from all trainer ranks that
write, whose shards all lie on this GPU. What would cross a network is copied too, so this is a measure of the
kernel, not of a cluster. Needs CUDA: exits with 2 where there is none.
"""

import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from multiprocessing.connection import Connection
from statistics import median, quantiles
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks._report import arguments, publish
from hybridrl.bench.workloads.swap_shapes import WORKLOADS
from hybridrl.layout.base import Layout
from hybridrl.reshard.block_fp8 import BlockFP8
from hybridrl.reshard.checksum import as_matrix
from hybridrl.reshard.execute import best
from hybridrl.reshard.executors.base import Executor
from hybridrl.reshard.kernels.reference import BLOCK
from hybridrl.reshard.plan import Job, plan
from hybridrl.reshard.table import Table, tabulate
from hybridrl.reshard.transports.base import SharedTensor, attach, find

RESULT = {
    "gpu": "its name",
    "ceiling_gb_per_s": "payload of one plain copy on the device",
    "workloads": "by workload: every way to write one engine rank, in bfloat16 and to block FP8",
}

BUCKET_BYTES = 512 << 20
CEILING_BYTES = 4 << 30
UNQUANTISED = ("embed_tokens", "lm_head", "mlp.gate.")
"""Words in the names of matrices that an FP8 engine keeps as they are."""


def main() -> None:
    options = arguments(
        __doc__,
        smoke={"workloads": "W4", "fp8_workloads": "W4", "rounds": 2},
        workloads="W1,W4,W8",
        fp8_workloads="W4,W8",
        rounds=20,
    )
    if not torch.cuda.is_available():
        print("no CUDA device here: benchmarks/reshard_gpu.py measures a GPU", file=sys.stderr)
        raise SystemExit(2)
    device, executor = torch.device("cuda"), best("cuda")
    ceiling = ceiling_gb_per_s(device, options.rounds)
    workloads: dict[str, dict[str, Any]] = {}
    for name in options.workloads.split(","):
        workload = next(w for w in WORKLOADS if w.name == name)
        job = Job(workload.source, workload.targets, workload.topology)
        work = replay(job)
        print(f"{name}: {workload.title}, {work.payload_bytes / 1e9:.1f} GB", file=sys.stderr, flush=True)
        workloads[name] = {"title": workload.title} | measure(work, executor, device, ceiling, options.rounds)
        if name in options.fp8_workloads.split(","):
            workloads[name]["fp8"] = measure_fp8(work, executor, device, ceiling, options.rounds)
    name = torch.cuda.get_device_name(device)
    publish({"gpu": name, "ceiling_gb_per_s": ceiling, "workloads": workloads}, options.json)


@dataclass(frozen=True)
class Replay:
    """What is written into one engine rank."""

    table: Table
    """Sources are called rank/tensor."""

    source_shapes: tuple[tuple[int, ...], ...]
    target_shapes: tuple[tuple[int, ...], ...]

    @property
    def payload_bytes(self) -> int:
        """Written, in bfloat16."""
        return 2 * int((self.table.boxes[:, 6] * self.table.boxes[:, 7]).sum())

    def sources(self, device: torch.device) -> list[Tensor]:
        draw = torch.Generator(device).manual_seed(0)
        return [
            torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(generator=draw)
            for shape in self.source_shapes
        ]

    def targets(self, device: torch.device) -> list[Tensor]:
        return [torch.zeros(shape, dtype=torch.bfloat16, device=device) for shape in self.target_shapes]

    def fp8_targets(self, device: torch.device) -> list[Tensor | BlockFP8]:
        """Matrices of whole blocks as an FP8 engine keeps them, the rest in bfloat16."""
        return [
            _block_fp8(shape, device)
            if is_quantised(name, shape)
            else torch.zeros(shape, dtype=torch.bfloat16, device=device)
            for (_, _, name), shape in zip(self.table.targets, self.target_shapes)
        ]


def replay(job: Job, *, target: int = 0, rank: int = 0) -> Replay:
    """Of one rank of a job's targets."""
    transfers = [
        replace(t, source_tensor=f"{t.source_rank}/{t.source_tensor}")
        for t in plan(job, target=target, target_rank=rank)
    ]
    table = tabulate(transfers)
    held = {place: job.source.shards(place) for place in {t.source_rank for t in transfers}}
    sources = [name.split("/", 1) for name in table.sources]
    return Replay(
        table,
        tuple(held[int(place)][name].shape for place, name in sources),
        _shapes(job.targets[target], rank, table),
    )


def _shapes(layout: Layout, rank: int, table: Table) -> tuple[tuple[int, ...], ...]:
    shards = layout.shards(rank)
    return tuple(shards[name].shape for _, _, name in table.targets)


def is_quantised(name: str, shape: Sequence[int]) -> bool:
    whole = len(shape) > 1 and not any(length % BLOCK for length in shape[-2:])
    return whole and not any(word in name for word in UNQUANTISED)


def _block_fp8(shape: Sequence[int], device: torch.device) -> BlockFP8:
    *experts, rows, cols = shape
    values = torch.zeros(shape, dtype=torch.float8_e4m3fn, device=device)
    return BlockFP8(values, torch.zeros(*experts, rows // BLOCK, cols // BLOCK, device=device))


def ways(
    table: Table, sources: Sequence[Tensor], targets: Sequence[Tensor], executor: Executor
) -> dict[str, Callable[[], object]]:
    """Calls that all write every box."""
    prepared = executor.prepare(table, sources, targets)
    values, places = views(table, sources, targets)
    return {
        "kernel": partial(prepared.write, sources, sums=False),
        "kernel with checksums": partial(prepared.write, sources),
        "copy_ per box": partial(_copy_each, values, places),
        "_foreach_copy_": partial(cast(Any, torch)._foreach_copy_, places, values),
        "flattened buckets": partial(_through_buckets, buckets(values, places, BUCKET_BYTES)),
    }


def views(
    table: Table, sources: Sequence[Tensor], targets: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Of every box, what is read and where it goes."""
    froms, tos = [as_matrix(t) for t in sources], [as_matrix(t) for t in targets]
    values, places = [], []
    for source, target, row, col, to_row, to_col, rows, cols in table.boxes.tolist():
        values.append(froms[source][row : row + rows, col : col + cols])
        places.append(tos[target][to_row : to_row + rows, to_col : to_col + cols])
    return values, places


Bucket = tuple[list[Tensor], list[Tensor]]


def buckets(values: Sequence[Tensor], places: Sequence[Tensor], limit_bytes: int) -> list[Bucket]:
    """In order, each of at most `limit_bytes`, or of one box."""
    found: list[Bucket] = []
    room = -1
    for value, place in zip(values, places):
        if value.nbytes > room:
            found.append(([], []))
            room = limit_bytes
        found[-1][0].append(value)
        found[-1][1].append(place)
        room -= value.nbytes
    return found


def _copy_each(values: Sequence[Tensor], places: Sequence[Tensor]) -> None:
    for value, place in zip(values, places):
        place.copy_(value)


def _through_buckets(buckets: Sequence[Bucket]) -> None:
    for values, places in buckets:
        flat = torch.cat([value.reshape(-1) for value in values])
        for part, place in zip(flat.split([place.numel() for place in places]), places):
            place.copy_(part.view(place.shape))


def ceiling_gb_per_s(device: torch.device, rounds: int) -> float:
    """Payload of one plain copy of neighbouring bytes on the device."""
    a = torch.ones(CEILING_BYTES, dtype=torch.uint8, device=device)
    b = torch.zeros_like(a)
    b.copy_(a)
    return round(CEILING_BYTES / median(timed(partial(b.copy_, a), device) for _ in range(rounds)) / 1e9, 1)


def measure(
    work: Replay, executor: Executor, device: torch.device, ceiling: float, rounds: int
) -> dict[str, Any]:
    sources = work.sources(device)
    here = measure_here(work, sources, executor, device, rounds)
    torch.cuda.empty_cache()  # the other process needs the room
    ipc = measure_ipc(work, sources, executor, device, rounds)
    spent = here["spent"] | {"kernel through IPC": ipc["spent"]}
    return {
        "boxes": len(work.table.boxes),
        "ways": report(spent, work.payload_bytes, ceiling),
        "differ": here["differ"] + ["kernel through IPC"] * (ipc["fingerprint"] != here["fingerprint"]),
        "prepare_s": round(here["prepare_s"], 4),
        "extra_memory_bytes": here["extra_memory_bytes"],
    }


def measure_here(
    work: Replay, sources: Sequence[Tensor], executor: Executor, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Targets in this process. Ways that differ from the first in a bit are named."""
    targets = work.targets(device)
    start = time.perf_counter()
    calls = ways(work.table, sources, targets, executor)
    prepare_s = time.perf_counter() - start
    found, extra_bytes = {}, {}
    for name, call in calls.items():
        for tensor in targets:
            tensor.zero_()
        extra_bytes[name] = _extra_bytes(call, device)
        found[name] = fingerprint(targets)
    expected = found["kernel"]
    return {
        "spent": in_turns(calls, device, rounds),
        "prepare_s": prepare_s,
        "extra_memory_bytes": extra_bytes,
        "fingerprint": expected,
        "differ": [name for name, prints in found.items() if prints != expected],
    }


def _extra_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Memory of the device that a call takes and gives back; 0 on a CPU, where nobody counts."""
    if device.type != "cuda":
        call()
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def measure_ipc(
    work: Replay, sources: Sequence[Tensor], executor: Executor, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Targets in another process on the same GPU."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(work, theirs), daemon=True)
    process.start()
    theirs.close()
    exported: list[SharedTensor] = ours.recv()
    targets = [attach(shared) for shared in exported]
    prepared = executor.prepare(work.table, sources, targets)
    call = partial(prepared.write, sources, sums=False)
    call()
    spent = [timed(call, device) for _ in range(rounds)]
    ours.send("done")
    found = ours.recv()
    process.join()
    return {"spent": spent, "fingerprint": found}


def _serve(work: Replay, orders: Connection) -> None:
    """An engine that was asked for its memory."""
    targets = work.targets(torch.device("cuda"))
    transport = find("cuda_ipc")
    orders.send([transport.export(tensor) for tensor in targets])
    orders.recv()
    orders.send(fingerprint(targets))


def measure_fp8(
    work: Replay, executor: Executor, device: torch.device, ceiling: float, rounds: int
) -> dict[str, Any]:
    """bfloat16 to block-FP8 on the way."""
    sources, targets = work.sources(device), work.fp8_targets(device)
    prepared = executor.prepare(work.table, sources, targets)
    call = partial(prepared.write, sources, sums=False)
    call()
    times = [timed(call, device) for _ in range(rounds)]
    written = call().bytes
    moved = work.payload_bytes + written
    speed = moved / median(times) / 1e9
    return {
        "quantised_tensors": sum(isinstance(t, BlockFP8) for t in targets),
        "tensors": len(targets),
        "written_bytes": written,
        "median_ms": round(median(times) * 1e3, 3),
        "read_and_written_gb_per_s": round(speed, 1),
        "share_of_byte_ceiling": round(speed / (2 * ceiling), 3),
    }


def in_turns(
    calls: Mapping[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every round; the calls take turns."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            spent[name].append(timed(call, device))
    return spent


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of wall clock until the device is done: what a caller waits, launches included."""
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fingerprint(tensors: Sequence[Tensor]) -> list[int]:
    """Equal for equal bits in equal places; places count modulo a prime."""
    return [_fingerprint(tensor) for tensor in tensors]


def _fingerprint(tensor: Tensor) -> int:
    total = 0
    words = tensor.view(torch.int16).flatten()
    for first, part in zip(accumulate(map(len, words.split(1 << 26)), initial=0), words.split(1 << 26)):
        place = (torch.arange(len(part), device=part.device, dtype=torch.int32) + first % 65521) % 65521
        total += int((part.to(torch.int32) * place.to(torch.int64)).sum())
    return total


def report(spent: Mapping[str, Sequence[float]], payload_bytes: int, ceiling: float) -> dict[str, Any]:
    """
    Args:
        spent: seconds, by way.
        ceiling: GB/s of payload.
    """
    found = {}
    for name, times in spent.items():
        speed = payload_bytes / median(times) / 1e9
        found[name] = {
            "median_ms": round(median(times) * 1e3, 3),
            "quartiles_ms": [round(q * 1e3, 3) for q in quantiles(times, n=4)[::2]],
            "gb_per_s": round(speed, 1),
            "share_of_ceiling": round(speed / ceiling, 3),
        }
    return found


if __name__ == "__main__":
    main()
