"""Records into a W&B run: a file in the folder of the run, which `wandb sync` uploads; or online at once.

One row of the run's history is one line of metrics.jsonl. W&B hears of the run what the other sinks do, and
nothing of the machine, the user, the environment, the program's arguments, the git repository or its output.
"""

import contextlib
import netrc
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

import psutil

from hybridrl.config.files import atomic_write
from hybridrl.errors import ResourceError
from hybridrl.observe.record import Record
from hybridrl.observe.sink import KEY, Sink, SinkRun, Status
from hybridrl.registry import register

RUN_ID_FILE = "wandb_run_id"

_START_S = 5.0
"""W&B's own process is up by then, once it begins to start."""

_EXIT_CODES = {"FINISHED": 0, "FAILED": 1, "KILLED": 255}


@register("sink", "wandb")
class WandbSink(Sink):
    """A resume goes on with the same run id; offline it makes another file, to be synced after the first."""

    label, package, requirement = "W&B", "wandb", "wandb>=0.26"

    def __init__(
        self,
        *,
        mode: Literal["offline", "online"] = "offline",
        project: str = "hybridrl",
        entity: str | None = None,
    ) -> None:
        """
        Args:
            mode: offline asks no host and needs no account; online needs WANDB_API_KEY or `wandb login`.
            project: the project in W&B.
            entity: team or user in W&B; None: the account's default.
        """
        self._mode: Literal["offline", "online"] = mode
        self._project, self._entity = project, entity
        self._id = ""
        self._run: Any = None
        self._starting = self._abandoned = False

    def refuse(self) -> None:
        super().refuse()
        if self._mode == "online" and not _has_api_key():
            raise ResourceError(
                "W&B is online, and there is no API key here",
                where=KEY,
                fix="wandb login, or set WANDB_API_KEY, or {name: wandb, mode: offline}",
            )

    def open(self, run: SinkRun) -> None:
        # The import reads them: no reports of errors to a host outside, nothing in the live view
        os.environ["WANDB_ERROR_REPORTING"], os.environ["WANDB_SILENT"] = "false", "true"
        import wandb

        self._id = self._id or _run_id(run)
        self._starting = True
        try:
            self._run = None if self._abandoned else self._init(wandb, run)
        finally:
            self._starting = False
        if self._abandoned:
            return
        # Steps of W&B must not go back, and a run that resumes from a checkpoint does: ours are a metric
        self._run.define_metric("*", step_metric="step")

    def _init(self, wandb: Any, run: SinkRun) -> Any:
        return wandb.init(
            dir=run.folder,
            id=self._id,
            name=run.folder.name,
            project=self._project,
            entity=self._entity,
            config=dict(run.config),
            resume="allow" if self._mode == "online" else None,  # offline there is nothing to ask
            settings=_settings(self._mode),
        )

    def write(self, records: Sequence[Record]) -> None:
        for record in records:
            own = {"step": record.step, "wall_s": record.wall_s, "_timestamp": record.time}
            self._run.log({**record.metrics, **own})

    def keep(self, path: Path) -> None:
        copy = shutil.copy(path, self._run.dir)
        self._run.save(str(copy), base_path=self._run.dir, policy="now")

    def close(self, status: Status) -> None:
        self._run.finish(exit_code=_EXIT_CODES[status])

    def abandon(self) -> None:
        """W&B lets no process end before its own one has, which may try to reach a host for hours. What it
        did not send is in the file that `wandb sync` takes.
        """
        self._abandoned, until = True, time.monotonic() + _START_S
        while not _killed() and self._starting and time.monotonic() < until:
            time.sleep(0.05)
        if wandb := sys.modules.get("wandb"):
            with contextlib.suppress(Exception):  # the connection is lost; told now, it is not told at exit
                wandb.teardown()

    def view(self, folder: Path) -> str:
        if self._mode == "online":
            return self._run.url or "" if self._run else ""
        return f"wandb sync {folder / 'wandb'}/offline-run-*"


def _killed() -> bool:
    """Whether W&B had a process of its own under this one, which is killed now."""
    found = False
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "wandb-core":
                process.kill()
                found = True
    return found


def _settings(mode: Literal["offline", "online"]) -> Any:
    from wandb import Settings

    return Settings(
        mode=mode,
        silent=True,
        console="off",
        host="",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        save_code=False,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


def _run_id(run: SinkRun) -> str:
    """The id that the folder keeps; a new run gets a new one."""
    file = run.folder / RUN_ID_FILE
    if run.resume_step is None or not file.exists():
        atomic_write(file, uuid4().hex[:12] + "\n")
    return file.read_text().strip()


def _has_api_key() -> bool:
    """W&B finds a key in the environment, or in the netrc file, where `wandb login` writes it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
