"""The WeightSync role: trainer ranks write into the engines' own parameters, then both sides' checksums are
compared.

Order of one swap, over all engines: close the gate -> begin (engines DIRTY) -> write -> checksums -> commit
-> open the gate. An error anywhere leaves the gate closed and the engines DIRTY, so nothing is sampled from
weights that did not commit.
"""

import time
from collections.abc import Iterable

from hybridrl.config.schema import ClusterConfig
from hybridrl.errors import SwapError
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.reshard.swap import SwapWritten
from hybridrl.types import PolicyVersion, SwapReport
from hybridrl.workers.rollout import RayRollout
from hybridrl.workers.trainer import RayTrainer

Checksums = dict[tuple[int, int, str], int]
"""By engine, tensor-parallel rank of the engine, and tensor."""


class RaySync:
    def __init__(
        self, trainer: RayTrainer, rollout: RayRollout, layout: SGLangLayout, cluster: ClusterConfig
    ) -> None:
        self._trainer, self._rollout, self._layout, self._cluster = trainer, rollout, layout, cluster

    async def connect(self) -> None:
        """Once, when both sides are up: engines export their parameters, trainer ranks map them and agree on
        the plan.

        Raises:
            SwapError: two ranks planned differently.
        """
        exports = await self._rollout.all("export_parameters")
        engines = [(self._layout, export) for export in exports]
        hashes = await self._trainer.workers.all("connect", engines, timeout_s=self._cluster.start_timeout_s)
        if len(set(hashes)) != 1:
            raise SwapError(f"trainer ranks disagree about the swap plan: {hashes}")

    async def push(self, version: PolicyVersion) -> SwapReport:
        start = time.perf_counter()
        async with self._rollout.quiet():
            await self._rollout.all("begin_swap", version)
            written = await self._trainer.workers.all("write_weights", timeout_s=self._cluster.step_timeout_s)
            found = await self._rollout.all("checksums")
            compare(
                add_up(written),
                {(e, r, n): c for e, tp in enumerate(found) for r, d in enumerate(tp) for n, c in d.items()},
            )
            await self._rollout.all("commit_swap", version)
        return SwapReport(
            version=version,
            time_s=time.perf_counter() - start,
            num_tensors=sum(len(d) for tp in found for d in tp),
            written_bytes=sum(w.bytes for w in written),
            staging_bytes=max(w.staging_bytes for w in written),
            checksums_equal=True,
        )


def add_up(written: Iterable[SwapWritten]) -> Checksums:
    """Checksums of whole engine tensors from the shares of them that the trainer ranks wrote."""
    total: Checksums = {}
    for share in written:
        for key, value in share.checksums.items():
            total[key] = (total.get(key, 0) + value) % 2**64
    return total


def compare(source: Checksums, engine: Checksums) -> None:
    """
    Raises:
        SwapError: a tensor of an engine was not written, or does not hold what the trainer has.
    """
    if source.keys() != engine.keys():
        raise SwapError(
            f"the swap left out {sorted(engine.keys() - source.keys())[:4]} "
            f"and wrote {sorted(source.keys() - engine.keys())[:4]}, which no engine has"
        )
    wrong = sorted(key for key, value in engine.items() if value != source[key])
    if wrong:
        raise SwapError(
            f"{len(wrong)} of {len(engine)} tensors differ after the swap",
            where=f"first: engine {wrong[0][0]}, rank {wrong[0][1]}, {wrong[0][2]}",
        )
