"""One rank's part of every weight swap: a trainer rank's, or that of a receiver beside an engine."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hybridrl.hosts import cuda
from hybridrl.layout.base import Layout
from hybridrl.reshard.communicator import Communicator, Rendezvous
from hybridrl.reshard.routes import Reach
from hybridrl.reshard.swap import STAGING_BYTES, Engine, SwapWriter, SwapWritten
from hybridrl.reshard.topology import Topology


class SwapRank:
    def __init__(self, source: Layout, device: torch.device, timeout_s: float) -> None:
        """
        Args:
            source: layout of the trainer.
            device: device of this rank's tensors.
            timeout_s: how long a rank waits for another one.
        """
        self._source, self._device = source, device
        self._timeout = timedelta(seconds=timeout_s)
        self._backend = "nccl" if device.type == "cuda" else "gloo"
        self._communicator = Communicator(self._backend, self._timeout)
        self._writers: Sequence[SwapWriter] = ()

    def connect(
        self,
        rank: int,
        engines: Mapping[int, Engine],
        lost: frozenset[int],
        topology: Topology | None,
        waves: Sequence[Sequence[int]],
        fixed: Set[str],
        rendezvous: Rendezvous | None = None,
    ) -> str:
        """Map the engines' parameters and plan the swap without the lost ranks; returns the plan's hash.

        With a topology this is *collective*, because ranks send weights to each other. If ranks are lost, no
        process group can be made, and each rank writes only to engines that it reaches.

        Args:
            rank: rank in the source, or of an agent of the topology.
            engines: the engines that are written, by index.
            waves: those that are written together.
            fixed: as in SwapWriter.
            rendezvous: where trainer ranks and agents meet; None: there are no agents.

        Raises:
            SwapError: no rank reaches a part of an engine.
        """
        group = self._group(rank, lost, topology, rendezvous)
        separate = rendezvous is not None
        # On GPUs, other ones are reached over NCCL, which uses the best link. Engines on dedicated devices
        # get all their bytes from their agents, also on a CPU, so that it is one protocol everywhere.
        reach: Reach = "device" if self._device.type == "cuda" or separate else "node"
        self._writers = [
            SwapWriter(
                self._source,
                rank,
                [engines[engine] for engine in wave],
                topology=topology and topology.with_targets(wave),
                lost=lost,
                fixed=fixed,
                group=group,
                device=self._device,
                reach=reach,
                once_per_node=separate,
                staging_bytes=STAGING_BYTES // len(waves),
            )
            for wave in waves
        ]
        return " ".join(writer.plan_hash for writer in self._writers)

    def plan_fields(self) -> dict[str, str]:
        """The inputs that determine the plan, to explain a disagreement."""
        return self._writers[0].plan_fields

    def write(self, wave: int, tensors: Mapping[str, torch.Tensor], *, whole: bool) -> SwapWritten:
        """Write this rank's share of the weights into the parameters of the engines of a wave.

        Args:
            whole: as in SwapWriter.write.
        """
        return self._writers[wave].write(tensors, whole=whole)

    def _group(
        self, rank: int, lost: frozenset[int], topology: Topology | None, rendezvous: Rendezvous | None
    ) -> dist.ProcessGroup | None:
        if rendezvous is not None:
            self._writers = ()  # they use the group that this leaves
            return self._communicator.join(rendezvous, rank)
        if topology is None or lost:
            return None
        group: Any = dist.new_group(backend=self._backend, timeout=self._timeout)
        return group


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverSetup:
    device: int
    """Number of its device in the topology of the run."""

    source: Layout
    """Layout of the trainer."""

    on_gpu: bool
    timeout_s: float
    """How long it waits for another rank of the swap."""


class Receiver:
    """An agent of the topology: it has no weights of the trainer, and writes for the engine rank on its
    device."""

    def __init__(self, setup: ReceiverSetup) -> None:
        device = cuda.take(0, transformer_engine=False) if setup.on_gpu else torch.device("cpu")
        self._setup, self._swap = setup, SwapRank(setup.source, device, setup.timeout_s)

    def connect(
        self,
        engines: Mapping[int, Engine],
        lost: frozenset[int],
        topology: Topology,
        waves: Sequence[Sequence[int]],
        rendezvous: Rendezvous,
        fixed: Set[str],
    ) -> str:
        """As for a trainer rank; *collective* over trainer ranks and the receivers of these engines.

        Args:
            fixed: parameters that no optimizer step changes, which only trainer ranks know.
        """
        rank = len(topology.source) + topology.agents.index(self._setup.device)
        return self._swap.connect(rank, engines, lost, topology, waves, fixed, rendezvous)

    def plan_fields(self) -> dict[str, str]:
        return self._swap.plan_fields()

    def write_weights(self, wave: int, whole: bool) -> SwapWritten:
        """Write what arrives for the engine rank on this device, and pass on what others of its node need."""
        written = self._swap.write(wave, {}, whole=whole)
        cuda.release_cached_memory()
        return written
