"""Joins a Ray that runs already, on this or several machines, for one run, and leaves it as it was."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker

from hybridrl.cluster.nodes import ExpectedNodes, await_nodes
from hybridrl.cluster.ray_local import LOOPBACK, quiet
from hybridrl.errors import ResourceError


@contextlib.contextmanager
def attached_ray(address: str, expected: ExpectedNodes, *, timeout_s: float) -> Iterator[Path]:
    """Join the Ray at `address` from one of its machines, wait for its nodes, and yield its local log folder.

    Workers run in the current folder of this process, so that relative paths of a config mean the same.

    Args:
        address: host:port of Ray's head.

    Raises:
        ResourceError: no Ray answers at the address.
        DeadlineError: not all expected nodes joined in time.
    """
    if address.partition(":")[0] == LOOPBACK:
        ray_constants.ENABLE_RAY_CLUSTER = False  # otherwise Ray replaces loopback by an external address
    quiet()
    folder = os.getcwd()
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            runtime_env={"worker_process_setup_hook": lambda: os.chdir(folder)},
        )
    except ConnectionError as error:
        raise ResourceError(
            f"no Ray answers at {address}", fix="start it, set cluster.ray.address, or RAY_AUTH_TOKEN"
        ) from error
    try:
        await_nodes(expected, timeout_s=timeout_s, address=address)
        node: Any = ray_worker.global_worker.node
        yield Path(node.get_logs_dir_path())
    finally:
        ray.shutdown()
