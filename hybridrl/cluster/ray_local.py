"""Starts a Ray for one run on one machine, which listens on loopback only."""

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants, services
from ray._private import worker as ray_worker

from hybridrl.cluster.leftovers import marked, removed_in_any_case
from hybridrl.errors import DeadlineError, ResourceError

LOOPBACK = "127.0.0.1"

_OBJECT_STORE_BYTES = 512 * 2**20
"""Size of the object store: enough for the token blocks of a few steps on one machine. A step of 8192
trajectories of 8192 tokens at 13 bytes per token would take 872 MB, but such runs use a cluster."""

START_S = 180.0
"""Time that Ray's own processes have to start. Ray itself gives up after 30 s, which is too little beside
engines that compile."""

_TOLD = ("raylet.err", "raylet.out", "gcs_server.err", "gcs_server.out")
"""Logs of Ray that say why it did not start."""

_PREFIX = "hybridrl-"
_SHORT = ("/tmp", "/var/tmp")
"""Places for the folder of Ray if the path of TMPDIR is too long."""

_MOST_BYTES = 107 - len(f"/{_PREFIX}12345678/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
"""Longest path of a place for Ray's folder: the path of a socket has at most 107 bytes."""


@contextlib.contextmanager
def local_ray(num_workers: int) -> Iterator[str]:
    """Start Ray, yield its log folder, stop it and remove its files.

    Args:
        num_workers: largest number of actors at the same time. Ray's CPUs are slots for actors, not cores.

    Raises:
        DeadlineError: Ray did not start.
    """
    folder = make_folder((tempfile.gettempdir(), *_SHORT))
    with removed_in_any_case(Path(folder)):
        try:
            _start(num_workers, folder)
            keep_private(Path.home() / ".ray" / "auth_token")
            yield os.path.join(folder, "session_latest", "logs")
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _start(num_workers: int, folder: str) -> None:
    quiet()
    ray_constants.ENABLE_RAY_CLUSTER = False  # otherwise Ray replaces loopback by an external address
    try:
        with marked(Path(folder)), patient(lambda: _runs(folder)):
            ray.init(
                num_cpus=num_workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                object_store_memory=_OBJECT_STORE_BYTES,
                _node_ip_address=LOOPBACK,
                _temp_dir=folder,
                _system_config={
                    "worker_niceness": 0,  # by default, all others have a higher priority
                    "agent_register_timeout_ms": int(1000 * START_S),
                    "task_events_report_interval_ms": 0,  # of 100,000 calls the GCS would keep 5 KB each
                },
            )
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        raise DeadlineError(
            f"Ray did not start. The ends of its logs:\n{_ends(Path(folder))}",
            where="Ray on this machine",
            fix="end what else runs here, or set cluster.ray.address to a Ray that runs",
        ) from error


@contextlib.contextmanager
def patient(is_starting: Callable[[], bool]) -> Iterator[None]:
    """A context in which Ray waits for its node as long as it is starting, at most START_S.

    By itself Ray asks for it during 30 s, a constant inside a function. Here each time it asks, it waits.
    """
    once = services.get_node

    def get_node(gcs_address: str, node_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + START_S
        while True:
            try:
                return once(gcs_address, node_id)
            except RuntimeError:
                if time.monotonic() > deadline or not is_starting():
                    raise
                time.sleep(0.1)

    services.get_node = get_node
    try:
        yield
    finally:
        services.get_node = once


def _runs(folder: str) -> bool:
    """Whether the raylet of a Ray that this process started is there."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name() == "raylet" and any(folder in argument for argument in child.cmdline()):
                return True
    return False


def _ends(folder: Path) -> str:
    """The last lines of the logs that say why Ray did not start."""
    logs = [folder / "session_latest" / "logs" / name for name in _TOLD]
    ends = {log.name: log.read_text(errors="replace").splitlines()[-5:] for log in logs if log.exists()}
    return "\n".join(f"{name}: {line}" for name, lines in ends.items() for line in lines) or "there are none"


def end_stopped_gcs(logs: Path) -> None:
    """End the GCS of a Ray that was started here if it is stopped, as after SIGSTOP: the end of a run asks it
    about every worker, and waits a minute for each answer.

    Args:
        logs: Ray's log folder.
    """
    own = f"--log_dir={logs.resolve()}"
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_STOPPED and own in process.cmdline()[:4]:
                if process.name().startswith("gcs_server"):
                    process.kill()


def make_folder(places: Sequence[str]) -> str:
    """Make a folder for Ray in the first place whose path is short enough and that can be written.

    Raises:
        ResourceError: there is none.
    """
    for place in places:
        if len(os.fsencode(place)) <= _MOST_BYTES:
            with contextlib.suppress(OSError):
                return tempfile.mkdtemp(prefix=_PREFIX, dir=place)
    raise ResourceError(
        f"Ray puts sockets into a temporary folder, whose path may have {_MOST_BYTES} bytes: TMPDIR = "
        f"{places[0]} has {len(os.fsencode(places[0]))}, and {' and '.join(places[1:])} cannot be written",
        where="TMPDIR",
        fix="TMPDIR=/dev/shm, or another folder with a short path",
    )


def keep_private(token: Path) -> None:
    """Let nobody else read the token of Ray, which Ray writes with the rights that files have by default."""
    with contextlib.suppress(OSError):  # there is none if RAY_AUTH_TOKEN has it, or RAY_AUTH_MODE says so
        token.chmod(0o600)


def quiet() -> None:
    """Send Ray's messages to the log."""
    # Ray would print them over the live view, and group.py reports dead workers anyway.
    ray_worker.print_to_stdstream = _to_log


def _to_log(data: dict[str, Any], ignore_prefix: bool) -> None:
    for line in data["lines"]:
        logging.getLogger("hybridrl.ray").info("%s %s", data["pid"], line)
