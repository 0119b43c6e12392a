"""Calls Slurm's commands: submits a job, and asks for its state."""

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from hybridrl.errors import ResourceError

_POLL_S = 5.0
_UNFINISHED = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "STOPPED"}
_UNKNOWN_JOB = "Invalid job id"


@dataclass(frozen=True, slots=True)
class JobState:
    name: str
    """Slurm's name of the state: PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, ..."""

    exit_code: int
    """Exit code of the job's script; 128 + signal if a signal ended it, as in a shell."""

    @property
    def finished(self) -> bool:
        return self.name not in _UNFINISHED


def submit(script: Path) -> int:
    """Submit a job; returns its id.

    Raises:
        ResourceError: this machine has no Slurm, or Slurm refuses the job.
    """
    done = _run("sbatch", "--parsable", str(script))
    if done.returncode:
        raise ResourceError(
            f"Slurm refuses the job: {_last_line(done.stderr)}",
            where=str(script),
            fix="change the keys of cluster.slurm, which say what the job requests",
        )
    return int(done.stdout.partition(";")[0])  # "id;cluster" if Slurm has several clusters


def state(job: int) -> JobState | None:
    """The state of a job; None if Slurm has forgotten it, which happens minutes after its end.

    Raises:
        ResourceError: this machine has no Slurm, or Slurm does not answer.
    """
    done = _run("scontrol", "show", "job", "--oneliner", str(job))
    if done.returncode and _UNKNOWN_JOB in done.stderr + done.stdout:
        return None
    if done.returncode:
        raise ResourceError(f"Slurm does not answer: {_last_line(done.stderr)}", fix="try again")
    return parse_state(done.stdout)


def parse_state(line: str) -> JobState:
    """Parse the output of `scontrol show job --oneliner`."""
    found = dict(re.findall(r"(\w+)=(\S*)", line))
    code, _, signal = found["ExitCode"].partition(":")
    return JobState(found["JobState"], int(code) or (128 + int(signal) if int(signal) else 0))


def wait(job: int) -> JobState | None:
    """Wait until a job is over, even if it is requeued; returns None if Slurm has forgotten it."""
    while (found := state(job)) is not None and not found.finished:
        time.sleep(_POLL_S)
    return found


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise ResourceError(
            f"no {command[0]} on this machine",
            where="Slurm",
            fix="launch on a login node of the cluster; --dry-run writes the job's script anywhere",
        ) from None


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "it gives no reason")
