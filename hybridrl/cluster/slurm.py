"""Slurm's own commands: hand a job over, ask what became of it."""

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
    """In Slurm's words: PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, ..."""

    exit_code: int
    """Of the job's script; 128 + the signal that ended it, as a shell has it."""

    @property
    def finished(self) -> bool:
        return self.name not in _UNFINISHED


def submit(script: Path) -> int:
    """Hand a job over; its id.

    Raises:
        ResourceError: there is no Slurm here, or it refuses the job.
    """
    done = _run("sbatch", "--parsable", str(script))
    if done.returncode:
        raise ResourceError(
            f"Slurm refuses the job: {_last_line(done.stderr)}",
            where=str(script),
            fix="the keys below cluster.slurm say what it asks for",
        )
    return int(done.stdout.partition(";")[0])  # "id;cluster" where there are several


def state(job: int) -> JobState | None:
    """What Slurm knows of a job; None: nothing any more, minutes after its end.

    Raises:
        ResourceError: there is no Slurm here, or it does not answer.
    """
    done = _run("scontrol", "show", "job", "--oneliner", str(job))
    if done.returncode and _UNKNOWN_JOB in done.stderr + done.stdout:
        return None
    if done.returncode:
        raise ResourceError(f"Slurm does not answer: {_last_line(done.stderr)}", fix="try again")
    return parse_state(done.stdout)


def parse_state(line: str) -> JobState:
    """Of a line of `scontrol show job --oneliner`."""
    found = dict(re.findall(r"(\w+)=(\S*)", line))
    code, _, signal = found["ExitCode"].partition(":")
    return JobState(found["JobState"], int(code) or (128 + int(signal) if int(signal) else 0))


def wait(job: int) -> JobState | None:
    """Wait until a job is over, however often it is requeued; None: Slurm forgot it."""
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
    return next(reversed(text.strip().splitlines()), "no word of why")
