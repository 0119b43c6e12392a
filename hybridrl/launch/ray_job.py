"""Submits a run as a job of a Ray cluster, or says the command that would."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from hybridrl.cluster import ray_jobs
from hybridrl.config.load import LoadedConfig
from hybridrl.launch.preflight import Say
from hybridrl.launch.ray_address import dashboard_of
from hybridrl.launch.shape import Resume

_OPTIONS: Mapping[Resume, Sequence[str]] = {
    "never": (),
    "if_possible": ("--continue",),
    "required": ("--resume",),
}


def launch(
    loaded: LoadedConfig, overrides: Sequence[str], say: Say, *, resume: Resume, dry_run: bool
) -> None:
    """Hand a checked config to the cluster whose dashboard is named.

    Args:
        overrides: those of the command line, which the job gets too.
        dry_run: only say the command that would do it.

    Raises:
        ConfigError: no dashboard is named.
        ResourceError: the dashboard does not answer.
    """
    asked = loaded.config.cluster.ray
    dashboard = dashboard_of(asked)
    folder = None if asked.working_dir else Path.cwd()
    line = entrypoint(loaded.file, overrides, resume=resume, folder=folder)
    if dry_run:
        say("dry run", f"nothing started; {command(dashboard, asked.working_dir, line)}")
        return
    job = ray_jobs.submit(dashboard, line, asked.working_dir)
    say("submitted", f"{job}; follow it with: ray job logs --address {dashboard} --follow {job}")


def entrypoint(file: str, overrides: Sequence[str], *, resume: Resume, folder: Path | None) -> str:
    """The line that the job runs.

    Args:
        folder: folder to run in; None: the one that was uploaded.
    """
    words = ["python", "-m", "hybridrl", "launch", file, *overrides, "--on", "ray"]
    run = shlex.join([*words, *_OPTIONS[resume]])
    return f"cd {shlex.quote(str(folder))} && {run}" if folder else run


def command(dashboard: str, working_dir: str | None, line: str) -> str:
    """`ray job submit` with the same effect."""
    upload = ["--working-dir", working_dir] if working_dir else []
    return shlex.join(["ray", "job", "submit", "--address", dashboard, *upload, "--", "bash", "-c", line])
