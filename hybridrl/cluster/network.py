"""Rendezvous of ranks: in a folder of their machine, or over the network between the nodes of a run."""

import ipaddress
import itertools
import random
import secrets
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from ray.util import get_node_ip_address

from hybridrl.cluster.placement import Placing
from hybridrl.errors import ResourceError

Rendezvous = Callable[[str], str]
"""Name of a group of ranks -> init_method for torch.distributed, a new one at each call."""

_PORTS = range(20_000, 30_000, 8)
"""Ports to choose from, below those that Linux gives to outgoing connections. The step is 8, because an
engine with several parts also uses the six ports after its own.
"""

_GROUPS = 5
"""Largest number of groups of ranks in a run: trainer, critic, reference, reward model, and trainer with
receivers."""


@dataclass(frozen=True, slots=True)
class Network:
    """How other nodes reach one node."""

    address: str
    """IP address of the node."""

    interface: str
    """Network interface that has the address."""

    ports: tuple[int, ...]
    """Ports that were free when they were probed: one for each group of ranks, the last for an engine."""

    @property
    def of_engine(self) -> str:
        """Rendezvous, host:port, of the parts of an engine whose first part is on this node."""
        return f"{self.address}:{self.ports[-1]}"


def in_folder(folder: Path) -> Rendezvous:
    """Rendezvous of ranks on one machine."""
    return lambda name: f"file://{folder.resolve() / f'{name}-{secrets.token_hex(8)}'}"


def at(network: Network) -> Rendezvous:
    """Rendezvous on the node that has every group's first rank. Groups that start again take the ports of
    those that have ended."""
    ports = itertools.cycle(network.ports[:-1])
    return lambda name: f"tcp://{network.address}:{next(ports)}"


def networks(place: Placing, nodes: Iterable[int], *, timeout_s: float) -> list[Network]:
    """The network of each of these nodes of a run, from a Ray task on that node.

    Raises:
        ResourceError: a node has no interface with the address that Ray uses for it.
    """
    asked = ray.remote(max_retries=0)(_here)
    return ray.get([asked.options(**place(node)).remote() for node in nodes], timeout=timeout_s)


def _here() -> Network:
    address = get_node_ip_address()
    return Network(address, interface_of(address), tuple(_free_ports(address, _GROUPS + 1)))


def interface_of(address: str) -> str:
    """The network interface of this machine that has an address.

    Raises:
        ResourceError: no interface has the address.
    """
    wanted = ipaddress.ip_address(address)
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family in (socket.AF_INET, socket.AF_INET6) and _same(a.address, wanted) for a in addresses):
            return name
    if wanted.is_loopback:  # every address of 127.0.0.0/8 is on the interface of 127.0.0.1
        return interface_of("127.0.0.1")
    raise ResourceError(
        f"Ray knows this node by {address}, which no network interface of it has",
        fix="start Ray with --node-ip-address; for Slurm jobs cluster.slurm.interface names the interface",
    )


def _same(text: str, wanted: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return ipaddress.ip_address(text.partition("%")[0]) == wanted


def _free_ports(address: str, count: int) -> list[int]:
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise ResourceError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} of {address} is free")
