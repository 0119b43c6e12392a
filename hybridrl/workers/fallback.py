"""Chooses how weights get into the engines, and implements the slow WeightSync: the engines' own loader.

The order of such a swap, over all engines: close the gate -> begin (engines DIRTY) -> for each bucket,
trainer ranks write it, and engines load it -> commit -> open the gate. It is not known where the loader puts
weights, so no checksums can be compared: the only check is that the engines acknowledge every bucket.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Literal

from hybridrl.config.schema import ClusterConfig
from hybridrl.errors import ResourceError, SwapError
from hybridrl.layout.base import Layout
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.loader import LoaderLayout
from hybridrl.reshard.buckets import split
from hybridrl.reshard.topology import Topology
from hybridrl.types import PolicyVersion, SwapReport
from hybridrl.workers.engine_worker import SwapMode
from hybridrl.workers.receivers import Receivers
from hybridrl.workers.rollout import RayRollout
from hybridrl.workers.sync import RaySync
from hybridrl.workers.trainer import RayTrainer

WeightPath = Literal["auto", "in_place", "engine_api"]
"""Values of rollout.weight_path."""


async def connect(
    path: WeightPath,
    trainer: RayTrainer,
    rollout: RayRollout,
    layout: Layout,
    cluster: ClusterConfig,
    warn: Callable[[str, str], None],
    topology: Topology | None = None,
    swap: SwapMode = "drain",
    receivers: Receivers | None = None,
) -> "RaySync | EngineApiSync":
    """Choose how weights are synchronised, and prepare it.

    Call this once, when trainer and engines are up and before the first request.

    Args:
        layout: declared layout of every engine; the engine's loader is probed before anything is written. A
            LoaderLayout declares nothing, so that weights take the loader.
        warn: called with (about, text).
        topology: placement of all ranks; None if all are on one node and every rank reaches every engine.
        swap: what engines do with open groups during a swap.
        receivers: those of engines on dedicated devices.

    Raises:
        LayoutError: the engine's loader contradicts the layout, and `path` or the number of nodes does not
            allow the loader itself.
        ResourceError: `path` is engine_api, and the run has several nodes.
        SwapError: two trainer ranks made different plans.
    """
    several_nodes = topology is not None and topology.num_nodes > 1
    if path != "engine_api" and not isinstance(layout, LoaderLayout):
        differences = await rollout.all("probe_loader", layout)
        difference = next(filter(None, differences), None)
        if difference is None:
            in_place = RaySync(trainer, rollout, layout, cluster, warn, topology, swap, receivers)
            await in_place.connect()
            return in_place
        if path == "in_place" or several_nodes or any(held.fp8 for held in layout.holdings):
            raise difference  # the loader does not quantise
        warn("weight path", f"weights take the slow way, through the engine's own loader: {difference.what}")
    elif several_nodes:
        raise ResourceError(
            "weights take the engines' own loader through the memory of one machine, the run has several",
            where="rollout.weight_path",
            fix="rollout.weight_path=in_place, or cluster.nodes=1",
        )
    through_loader = EngineApiSync(trainer, rollout, HFLayout(layout.spec), cluster)
    await through_loader.connect()
    return through_loader


class EngineApiSync:
    """WeightSync through the engines' own loader."""

    def __init__(
        self, trainer: RayTrainer, rollout: RayRollout, checkpoint: HFLayout, cluster: ClusterConfig
    ) -> None:
        self._trainer, self._rollout, self._checkpoint, self._cluster = trainer, rollout, checkpoint, cluster
        self._version: PolicyVersion | None = None
        self._swapping = asyncio.Lock()

    async def connect(self) -> None:
        """Let all trainer ranks plan the same buckets and map the buffer that carries them.

        Raises:
            SwapError: two ranks made different plans.
        """
        timeout_s = self._cluster.start_timeout_s
        workers = self._trainer.workers
        dtypes = set().union(*await workers.all("weight_dtypes", timeout_s=timeout_s))
        # The widest dtype loses nothing: the loader casts to the engine's dtype, as the in-place swap does.
        self._buckets = split(self._checkpoint, max(dtypes, key=lambda dtype: dtype.itemsize))
        self._buffer = await workers.one(0, "open_buckets", self._buckets, timeout_s=timeout_s)
        hashes = await workers.all("plan_buckets", self._buckets, self._buffer, timeout_s=timeout_s)
        if len(set(hashes)) != 1:
            raise SwapError(f"trainer ranks disagree about the buckets: {hashes}")

    async def push(self, version: PolicyVersion) -> SwapReport:
        """Bring all engines to a version.

        Raises:
            EngineError: an engine did not load a bucket, or was lost and is not replaced. No engine serves.
            WorkerError: a trainer rank died. No engine serves.
        """
        start, engines = time.perf_counter(), self._rollout.engines
        async with self._rollout.quiet(), self._swapping:
            written_bytes = await self._swap(engines.present, version)
            while not engines.serving:
                written_bytes += await self._swap([await engines.one_is_fresh()], version)
            self._version = version
        engines.swapped(version + 1)
        return SwapReport(
            version=version,
            time_s=time.perf_counter() - start,
            num_tensors=sum(len(bucket.shapes) for bucket in self._buckets) * len(engines.serving),
            written_bytes=written_bytes,
            staging_bytes=max(bucket.nbytes for bucket in self._buckets),
            checksums_equal=None,
        )

    async def join(self, engine: int) -> None:
        """Give a fresh engine the weights that the others serve, unless the trainer has others: then the next
        swap does."""
        async with self._trainer.unchanged, self._swapping:
            is_fresh = engine in self._rollout.engines.fresh
            if is_fresh and self._version is not None and self._trainer.has(self._version):
                await self._swap([engine], self._version)

    async def _swap(self, engines: Sequence[int], version: PolicyVersion) -> int:
        """Swap some engines; returns the bytes that the trainer wrote. Those that are lost leave the swap."""
        kept, written_bytes = list(await self._rollout.on(engines, "begin_swap", version)), 0
        for index, bucket in enumerate(self._buckets):
            written_bytes += sum(await self._trainer.workers.all("write_bucket", index))
            first, last = index == 0, index == len(self._buckets) - 1
            kept = list(await self._rollout.on(kept, "load_bucket", bucket, self._buffer, first, last))
        for engine in await self._rollout.on(kept, "commit_swap", version):
            self._rollout.engines.serve(engine)
        return written_bytes
