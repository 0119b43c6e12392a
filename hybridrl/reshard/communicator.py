"""The process group of a swap whose ranks are in no common default group: trainer ranks and agents.

The default group of the trainer has its own ranks only, because its library partitions that group. Agents
have no default group. So each member joins a further group through a store of its own. A group is made anew
for every plan: engines that join or leave change its members, and a group that lost a member is broken.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import FileStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed import distributed_c10d as c10d


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """A place at which the members of one group meet."""

    address: str
    """file:///path on one machine, or tcp://host:port, where the first rank serves the store."""

    group: str
    """Name of the group; never that of an earlier group at the same address."""

    size: int
    """Number of members."""


class Communicator:
    """The present group of this process, and the store through which the next ones are made."""

    def __init__(self, backend: str, timeout: timedelta) -> None:
        """
        Args:
            backend: gloo or nccl.
            timeout: how long a rank waits for another one.
        """
        self._backend, self._timeout = backend, timeout
        self._store: Store | None = None
        self._group: dist.ProcessGroup | None = None

    def join(self, rendezvous: Rendezvous, rank: int) -> dist.ProcessGroup:
        """Leave the present group and join another. *Collective* over the members of the new one.

        Raises:
            RuntimeError: a member did not come in time.
        """
        self.leave()
        with _unbound_default():
            group, _ = c10d._new_process_group_helper(  # pyright: ignore[reportPrivateUsage]
                rendezvous.size,
                rank,
                [],
                dist.Backend(self._backend),
                self._store_of(rendezvous, rank),
                group_name=c10d.GroupName(f"swap {rendezvous.group}"),
                timeout=self._timeout,
            )
        assert isinstance(group, dist.ProcessGroup), "every caller is a member"
        # torch has no public call for a group beside the default one; this is what its own call adds.
        c10d._world.pg_group_ranks[group] = {member: member for member in range(rendezvous.size)}  # pyright: ignore[reportPrivateUsage]
        self._group = group
        return group

    def leave(self) -> None:
        """Leave the present group, if there is one; others need not."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _store_of(self, rendezvous: Rendezvous, rank: int) -> Store:
        kind, _, place = rendezvous.address.partition("://")
        if kind == "file":
            return FileStore(f"{place}-{rendezvous.group}", rendezvous.size)
        if self._store is None:
            host, _, port = place.rpartition(":")
            self._store = TCPStore(
                host.strip("[]"),
                int(port),
                is_master=rank == 0,
                timeout=self._timeout,
                wait_for_workers=False,
            )
        return self._store


@contextlib.contextmanager
def _unbound_default() -> Iterator[None]:
    """Inside, the default group has no device: torch would split a new group off one that has, and not all
    members of ours are in it."""
    default = dist.group.WORLD if dist.is_initialized() else None
    bound = default.bound_device_id if default is not None else None
    if default is None or bound is None:
        yield
        return
    default.bound_device_id = None
    try:
        yield
    finally:
        default.bound_device_id = bound
