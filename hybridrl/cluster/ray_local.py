"""A Ray of one machine that listens on loopback only, for one run."""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker

LOOPBACK = "127.0.0.1"

_OBJECT_STORE_BYTES = 512 * 2**20
"""Token blocks of a few steps; 8192 trajectories of 8192 tokens at 13 bytes a token are 872 MB on a cluster,
not here."""


@contextlib.contextmanager
def local_ray(num_workers: int) -> Iterator[str]:
    """Start Ray, yield its log folder, stop it and remove its files.

    Args:
        num_workers: actors that live at the same time. Ray's CPUs are slots for them, not cores.
    """
    folder = tempfile.mkdtemp(
        prefix="hybridrl-"
    )  # short: Ray puts sockets inside, whose paths may have 107 bytes
    try:
        quiet()
        ray_constants.ENABLE_RAY_CLUSTER = (
            False  # else Ray trades loopback for the address that other machines see
        )
        ray.init(
            num_cpus=num_workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address=LOOPBACK,
            _temp_dir=folder,
            _system_config={"worker_niceness": 0},  # Ray lets every other process of the machine go first
        )
        yield os.path.join(folder, "session_latest", "logs")
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def quiet() -> None:
    """Send what Ray prints to the log."""
    ray_worker.print_to_stdstream = _to_log


def _to_log(data: dict[str, Any], ignore_prefix: bool) -> None:
    """Raylet's messages go to the log: Ray prints them over the live view, and group.py names a dead worker
    anyway."""
    for line in data["lines"]:
        logging.getLogger("hybridrl.ray").info("%s %s", data["pid"], line)
