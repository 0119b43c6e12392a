"""The Ray of a run, started on this machine or joined, and the workers that it starts on the run's nodes."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from hybridrl.cluster.env import expected_nodes
from hybridrl.cluster.group import WorkerGroup, end, wait_until_gone
from hybridrl.cluster.late_nodes import NONE, LateNodes, awaited
from hybridrl.cluster.network import Rendezvous, at, in_folder, networks
from hybridrl.cluster.nodes import ExpectedNodes
from hybridrl.cluster.placement import Placing, anywhere, gpu_names, reserved
from hybridrl.cluster.ray_attached import attached_ray
from hybridrl.cluster.ray_local import end_stopped_gcs, local_ray
from hybridrl.config.cluster import ClusterConfig
from hybridrl.errors import WorkerError
from hybridrl.hosts.machine import Machine
from hybridrl.hosts.stacks import stacks_of
from hybridrl.launch.deadlines import deadlines
from hybridrl.launch.devices import Visible, environment
from hybridrl.wording import counted

_STACKS_S, _GONE_S = 20.0, 20.0


@dataclass(frozen=True, slots=True)
class Cluster:
    cfg: ClusterConfig
    logs: Path
    place: Placing
    described: str
    rendezvous: Rendezvous
    interfaces: tuple[str, ...]
    """Network interface that the workers of each node talk over; nodes of environments, and those that may
    come late, have none."""

    gpus: Sequence[Sequence[str]] = ()
    """GPUs of each node, as CUDA names them; of a node that may come late their positions."""

    is_local: bool = False
    """Whether all processes are on this machine, in a Ray that was started for them."""

    engines_rendezvous: Sequence[str] = ()
    """host:port on each node, for the rendezvous of an engine in parts whose first part is on that node;
    empty if there is one node."""

    late: LateNodes = NONE
    """Nodes that may come after the run has begun."""

    def start(
        self, visible: Visible, name: str, worker: Any, arguments: Sequence[tuple], nodes: Sequence[int]
    ) -> WorkerGroup:
        """Start workers that do the same job, except those of nodes that have not come.

        Args:
            worker: the actor class.
            arguments, nodes: the arguments and the node of each worker.
        """
        of_each = visible.get(name, [""] * len(nodes))
        trains = not name.startswith(("engine", "judge", "frozen", "environment"))

        def begin(rank: int) -> Any:
            node = nodes[rank]
            if node in self.late and not self.late.is_there(node):
                raise WorkerError(f"the node of {name} rank {rank} has gone")
            variables = environment(*self._network_and_gpus(node, of_each[rank]), trains=trains)
            options = worker.options(runtime_env={"env_vars": variables}, **self.place(node))
            return options.remote(*arguments[rank])

        def begin_again(rank: int) -> Any:
            if group.actors[rank] is not None:
                end(group.actors[rank], group.pids.get(rank) if self.is_local else None)
            return begin(rank)

        absent = self.late.absent
        actors = [None if nodes[rank] in absent else begin(rank) for rank in range(len(arguments))]
        group = WorkerGroup(
            name,
            actors,
            self.logs,
            self.cfg.step_timeout_s,
            deadlines=deadlines(self.cfg),
            stacks=lambda rank, files: self._stacks(nodes[rank], files),
            start_again=begin_again,
        )
        return group

    def prepare_end(self) -> None:
        """Call this before the first worker is ended, so that the end waits for no Ray that is stopped."""
        if self.is_local:
            end_stopped_gcs(self.logs)

    async def end(self, group: WorkerGroup) -> None:
        """End the actors of a group, whatever they do; on this machine, wait until they are gone."""
        pids = group.pids if self.is_local else {}
        for rank in group.there:
            end(group.actors[rank], pids.get(rank))
        await asyncio.to_thread(wait_until_gone, [*pids.values()], _GONE_S)

    def _network_and_gpus(self, node: int, gpus: str) -> tuple[str, str]:
        if node in self.late:
            return self.late.interface(node), self.late.named(node, gpus)
        return self.interfaces[node] if node < len(self.interfaces) else "", gpus

    async def _stacks(self, node: int, files: Mapping[int, Path]) -> Mapping[int, str]:
        if self.is_local:
            return await asyncio.to_thread(stacks_of, files, self.logs)
        task: Any = ray.remote(max_retries=0)(stacks_of).options(**{**self.place(node), "num_cpus": 0})
        return await asyncio.wait_for(task.remote(files, self.logs), _STACKS_S)


@contextlib.contextmanager
def ray_cluster(
    cfg: ClusterConfig,
    per_node: Sequence[int],
    machine: Machine,
    address: str | None = None,
    *,
    others: int = 0,
) -> Iterator[Cluster]:
    """Ray, for as long as a run lasts.

    Args:
        per_node: workers on each node.
        address: address of the Ray to join; None: one is started on this machine.
        others: further nodes of that Ray, without GPUs, which have one worker each.

    Raises:
        ResourceError: the cluster lacks room.
    """
    num_gpus, timeout_s, least = cfg.gpus_per_node or 0, cfg.start_timeout_s, cfg.nodes_at_start
    if address is None:
        with local_ray(num_workers=sum(per_node)) as folder:
            gpus, logs = [[str(gpu.index) for gpu in machine.gpus][:num_gpus]], Path(folder)
            rendezvous = in_folder(logs)
            yield Cluster(cfg, logs, anywhere, "loopback only", rendezvous, ("lo",), gpus, is_local=True)
        return
    with (
        attached_ray(
            address, ExpectedNodes(least, num_gpus, expected_nodes(), others), timeout_s=timeout_s
        ) as logs,
        reserved(per_node[:least], num_gpus, others=others, timeout_s=timeout_s) as there,
        awaited(
            dict(enumerate(per_node[least:], least)), num_gpus, apart_from=there.node_ids, timeout_s=timeout_s
        ) as late,
    ):
        place = _placing(there, late)
        gpus = gpu_names(place, range(least), num_gpus) if num_gpus else []
        gpus += [[str(gpu) for gpu in range(num_gpus)]] * (cfg.nodes - least)
        rendezvous, interfaces, engines_rendezvous = in_folder(logs), ("lo",), ()
        if cfg.nodes > 1:
            found = networks(place, range(least), timeout_s=timeout_s)
            rendezvous, interfaces = at(found[0]), tuple(network.interface for network in found)
            engines_rendezvous = tuple(network.of_engine for network in found)
        yield Cluster(
            cfg,
            logs,
            place,
            f"on the Ray at {address}{_without(late)}",
            rendezvous,
            interfaces,
            gpus,
            engines_rendezvous=engines_rendezvous,
            late=late,
        )


def _placing(there: Placing, late: LateNodes) -> Placing:
    """Places workers on all nodes. In the run, those of environments follow the late ones; in Ray's group of
    the others they do not."""
    return lambda node: late.place(node) if node in late else there(node - late.before(node))


def _without(late: LateNodes) -> str:
    """What is said of nodes that are not there when a run begins."""
    return f", without {counted(len(late.absent), 'node')} that may come later" if late.absent else ""
