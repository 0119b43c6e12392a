"""Faults of a machine that only root can plant: a small disk that fills, full shared memory, two nodes whose
network is cut."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks._soak import processes

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


def missing() -> str:
    """Why such faults cannot be planted here; empty: they can."""
    if os.getuid():
        return "only root mounts disks and makes networks"
    for command in (["unshare", "-m", "true"], ["ip", "netns", "list"]):
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            return f"{' '.join(command)}: {error}"
    return ""


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of its own in a folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Write until the disk of a folder has no room."""
    with contextlib.suppress(OSError), (folder / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))


OWN_SHARED_MEMORY = (
    "unshare",
    "-m",
    "sh",
    "-c",
    'mount -t tmpfs -o size=1200m tmpfs /dev/shm && exec "$@"',
    "sh",
)
"""Words in front of a command that has a /dev/shm of its own."""


def fill_shared_memory(temporary: Path) -> None:
    """Fill the /dev/shm of a run to the last page."""
    (driver,) = [p for p in processes(temporary) if is_driver(p)]
    inside = ["nsenter", "-m", "-t", str(driver.pid)]
    for pages in (16, 1):
        fill_up = ["dd", "if=/dev/zero", f"of=/dev/shm/fill{pages}", f"bs={pages * 4096}"]
        done = subprocess.run([*inside, *fill_up], check=False, capture_output=True, text=True)
        assert "No space left on device" in done.stderr, done.stderr


def is_driver(process: psutil.Process) -> bool:
    """Whether it is the driver of a run, and not what starts it."""
    line = process.cmdline()
    return line[1:4] == ["-m", "hybridrl", "launch"]


@dataclass(frozen=True)
class Cluster:
    """Two networks with a cable between them, and nodes of one Ray in them."""

    names: tuple[str, str]
    folder: Path
    """Folder of the output of the nodes."""

    short: str
    """Folder of Ray, whose paths of sockets may have 107 bytes."""

    running: list["subprocess.Popen[bytes]"]

    @property
    def address(self) -> str:
        return "10.77.0.1:6399"

    @property
    def on_first(self) -> tuple[str, ...]:
        """Words in front of a command that runs in the first network."""
        return "ip", "netns", "exec", self.names[0]

    def cut(self) -> None:
        _ip("-n", self.names[0], "link", "set", "cable0", "down")

    def start_node(self, network: int, name: str, num_cpus: int) -> None:
        """Start a node of Ray; the first one is the head, in the first network."""
        head = ("--head", "--port=6399", "--include-dashboard=false")
        which = (f"--address={self.address}",) if self.running else head
        words = (
            *("start", "--block", "--num-gpus=0", f"--num-cpus={num_cpus}", f"--temp-dir={self.short}"),
            *(f"--node-name={name}", f"--node-ip-address=10.77.0.{network + 1}"),
        )
        ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
        with (self.folder / f"{name}.out").open("w") as out:
            self.running.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", self.names[network], *ray, *words, *which],
                    env=os.environ | ENVIRONMENT | {"TMPDIR": self.short},
                    stdout=out,
                    stderr=out,
                    cwd=self.folder,
                )
            )


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[Cluster]:
    """Start Ray on two nodes with 4 workers each, each in a network of its own."""
    with two_networks(folder) as cluster:
        for network in range(2):
            cluster.start_node(network, f"node{network}", 4)
            time.sleep(0 if network else 15)
        yield cluster


@contextlib.contextmanager
def two_networks(folder: Path) -> Iterator[Cluster]:
    """Make two networks; nodes that are started in them end after the context."""
    names = (f"hrl{os.getpid()}a", f"hrl{os.getpid()}b")
    with contextlib.ExitStack() as opened:
        for name in names:
            _ip("netns", "add", name)
            opened.callback(_ip, "netns", "delete", name)
        _ip(
            *("-n", names[0], "link", "add", "cable0", "type", "veth"),
            *("peer", "name", "cable1", "netns", names[1]),
        )
        for place, name in enumerate(names):
            _ip("-n", name, "address", "add", f"10.77.0.{place + 1}/24", "dev", f"cable{place}")
            for link in ("lo", f"cable{place}"):
                _ip("-n", name, "link", "set", link, "up")
        short = opened.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        cluster = Cluster(names, folder, short, [])
        opened.callback(_end, cluster.running)
        yield cluster


def _end(running: list[subprocess.Popen[bytes]]) -> None:
    for process in running:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in [*psutil.Process(process.pid).children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        process.kill()
        process.wait(30)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
