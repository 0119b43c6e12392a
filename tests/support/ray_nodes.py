"""Ray nodes of a cluster on this machine, which listen on loopback."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loopback_server import answers

ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
}

START = """
from ray._private import services
from ray.scripts.scripts import main

# Else Ray trades loopback for the address that other machines see.
services.node_ip_address_from_perspective = lambda address=None: "127.0.0.1"
main()
"""


class RayNode:
    """A `ray start` that runs until `end`."""

    def __init__(self, folder: Path, name: str, num_cpus: int, *arguments: str) -> None:
        self._short: tempfile.TemporaryDirectory[str] | None = None
        """Ray's own files, which the head has for all nodes."""

        self._out = folder / f"{name}.out"
        start = "start --block --num-gpus=0 --node-ip-address=127.0.0.1"
        with self._out.open("w") as out:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", START, *start.split()),
                    *(f"--node-name={name}", f"--num-cpus={num_cpus}", *arguments),
                ],
                env=os.environ | ENVIRONMENT,
                stdout=out,
                stderr=out,
                cwd=folder,
            )

    @classmethod
    def head(cls, folder: Path, name: str, num_cpus: int) -> tuple["RayNode", str]:
        """The node, and the address that others join at."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # A path of a Unix socket has at most 107 bytes, which folders of pytest leave no room for
        short = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        places = [f"--port={port}", f"--temp-dir={short.name}", "--include-dashboard=false"]
        node = cls(folder, name, num_cpus, "--head", *places)
        node._short = short
        deadline = time.monotonic() + 60
        while not answers(port):
            assert time.monotonic() < deadline and node.runs(), node._out.read_text()
            time.sleep(0.1)
        return node, f"127.0.0.1:{port}"

    @classmethod
    def member(cls, folder: Path, name: str, num_cpus: int, address: str) -> "RayNode":
        return cls(folder, name, num_cpus, f"--address={address}")

    def runs(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        if self._short is not None:
            self._short.cleanup()
