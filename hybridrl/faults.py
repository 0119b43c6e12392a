"""Faults that a run is asked to suffer, to see that it survives them:

    hybridrl launch my.yaml --inject "kill:engine:0@step=7,phase=generate"

This module reads and checks them. workers/planted.py plants them; a run without the option has none of it.
"""

import contextlib
import difflib
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridrl.errors import ConfigError

KINDS = {
    "kill": "SIGKILL to its processes",
    "stop": "SIGSTOP to its processes: they are there and do nothing",
    "hang": "it never returns from what it does",
    "pause": "it is told to pause its requests, and never to go on",
    "skip": "it returns without doing it, so that the other ranks wait for it in a collective",
    "slow": "it takes `seconds` longer, 30 if they are not given",
    "disk_full": "the disk has no room for the checkpoint",
    "bad_checksum": "a tensor in its memory is not the one that was written",
    "nan": "advantages, and so the loss, are NaN on this rank",
}
"""Kind -> what happens."""

_OF_ENGINE = {
    "generate": "after its first answer by the weights that the step trains",
    "swap": "after it has stopped answering, to take the weights that the step makes",
}

PHASES: Mapping[str, Mapping[str, str]] = {
    "engine": _OF_ENGINE,
    "engine_worker": _OF_ENGINE,
    "trainer": {
        "load": "before it computes log-probabilities of the batch of the step",
        "update": "before its first optimizer step on the batch",
        "swap": "before it writes the weights that the step makes into engines",
        "save": "before it writes the checkpoint of the step",
    },
    "reward": {"reward": "before it scores answers by the weights that the step trains"},
    "driver": {
        "generate": "as it begins to wait for the answers of the step",
        "update": "as it begins the optimizer steps",
        "swap": "as it begins to put the weights into engines",
        "save": "as it begins the checkpoint",
    },
}
"""Target -> phase -> when the fault happens. An engine is the processes of SGLang or vLLM; its worker is the
process of the run that owns them."""

ONLY_AT = {
    "disk_full": ("trainer", "save"),
    "bad_checksum": ("engine", "swap"),
    "nan": ("trainer", "update"),
    "skip": ("trainer", "update"),
    "pause": ("engine", "generate"),
}
"""Kinds that have one target and phase."""

FAULTS_FILE = "faults.jsonl"
"""File of the run folder with the faults that happened, one line for each."""

_FORM = "kill:engine:0@step=7,phase=generate"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. It happens when the process reaches the phase of the step, `times` times."""

    kind: str
    target: str
    rank: int
    step: int
    phase: str
    seconds: float = 30.0
    times: int = 1
    record: str = field(default="", compare=False)
    """File that gets a line when it happens; "": none does."""

    def note(self) -> None:
        """Write down that it happens now, before it does: the process may have no time afterwards."""
        if not self.record:
            return
        found = {"time": round(time.time(), 3), "fault": str(self), "host": socket.gethostname()}
        line = json.dumps({**found, "pid": os.getpid()}) + "\n"
        with contextlib.suppress(OSError), Path(self.record).open("a", encoding="utf-8") as file:
            file.write(line)

    def __str__(self) -> str:
        who = self.target if self.target == "driver" else f"{self.target}:{self.rank}"
        return f"{self.kind}:{who}@step={self.step},phase={self.phase}"


class Planted:
    """The faults of one process that have not happened yet."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._left = [(fault, fault.times) for fault in faults]

    def due(self, phase: str, step: int, kinds: Iterable[str] = KINDS) -> Fault | None:
        """The first fault of one of these kinds that happens now; it counts as happened."""
        for place, (fault, times) in enumerate(self._left):
            if (fault.phase, fault.step) == (phase, step) and fault.kind in kinds:
                self._left[place : place + 1] = [(fault, times - 1)] if times > 1 else []
                fault.note()
                return fault
        return None


def parse(text: str) -> Fault:
    """Read a fault as the command line writes it:

        KIND:TARGET[:RANK]@step=N,phase=PHASE[,seconds=S][,times=N]

    Raises:
        ConfigError: it is not written so, or there is no such fault.
    """
    where = f"--inject {text!r}"
    head, has_options, tail = text.partition("@")
    words = head.split(":")
    if not has_options or len(words) not in (2, 3):
        raise ConfigError(f"{text!r} is not KIND:TARGET:RANK@step=N,phase=PHASE", where=where, fix=_FORM)
    kind, target = words[0], words[1]
    _refuse_unknown("kind of fault", kind, KINDS, where)
    _refuse_unknown("target", target, PHASES, where)
    options = _options(tail, where)
    missing = [name for name in ("step", "phase") if name not in options]
    if missing:
        raise ConfigError(f"{text!r} has no {' and no '.join(missing)}", where=where, fix=f"as in {_FORM}")
    _refuse_unknown(f"phase of target {target}", options["phase"], PHASES[target], where)
    fault = Fault(
        kind,
        target,
        rank=_number(words[2] if len(words) == 3 else "0", "RANK", int, where),
        step=_number(options["step"], "step", int, where),
        phase=options["phase"],
        seconds=_number(options.get("seconds", "30"), "seconds", float, where),
        times=_number(options.get("times", "1"), "times", int, where),
    )
    _refuse_impossible(fault, options, where)
    return fault


def refuse_absent(faults: Sequence[Fault], ranks: Mapping[str, int], steps: int) -> None:
    """Check that a run reaches its faults.

    Args:
        ranks: target -> number of its processes.
        steps: policy updates of the run.

    Raises:
        ConfigError: a fault is for a process or a step that the run does not have.
    """
    for fault in faults:
        where, count = f"--inject {str(fault)!r}", ranks[fault.target]
        if fault.rank >= count:
            raise ConfigError(
                f"there is no {fault.target} {fault.rank}: the run has {count}",
                where=where,
                fix=f"{fault.target}:0 is the first" if count == 1 else f"0 to {count - 1}",
            )
        if fault.step > steps:
            raise ConfigError(
                f"step {fault.step} is after the last one, run.steps = {steps}",
                where=where,
                fix="an earlier step",
            )


def _options(text: str, where: str) -> dict[str, str]:
    known, found = ("step", "phase", "seconds", "times"), {}
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        _refuse_unknown("option", name, known, where)
        if not equals or name in found:
            raise ConfigError(f"{name} has {'two values' if equals else 'no value'}", where=where, fix=_FORM)
        found[name] = value
    return found


def _number(text: str, name: str, kind: Any, where: str) -> Any:
    try:
        found = kind(text)
    except ValueError:
        found = -1
    if not 0 <= found < 2**31:
        wanted = "a whole number of 0 or more" if kind is int else "a number of seconds"
        raise ConfigError(f"{name} = {text!r} is not {wanted}", where=where, fix=f"as in {_FORM}")
    return found


def _refuse_impossible(fault: Fault, options: Mapping[str, str], where: str) -> None:
    only = ONLY_AT.get(fault.kind)
    if only and only != (fault.target, fault.phase):
        fix = f"{fault.kind}:{only[0]}:{fault.rank}@step={fault.step},phase={only[1]}"
        raise ConfigError(
            f"{fault.kind} happens to {only[0]} in phase {only[1]}, not to {fault.target} in {fault.phase}",
            where=where,
            fix=fix,
        )
    if fault.kind == "disk_full" and fault.rank:
        raise ConfigError(
            "disk_full happens to trainer:0, which commits a checkpoint", where=where, fix="trainer:0"
        )
    if "seconds" in options and fault.kind != "slow":
        raise ConfigError(f"seconds is for slow, not for {fault.kind}", where=where, fix="leave it out")
    if not fault.times:
        raise ConfigError("times = 0: it never happens", where=where, fix="leave it out")


def _refuse_unknown(what: str, name: str, known: Iterable[str], where: str) -> None:
    known = list(known)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    fix = f"{near[0]!r} is the nearest" if near else f"one of {', '.join(known)}"
    raise ConfigError(f"there is no {what} {name!r}: there are {', '.join(known)}", where=where, fix=fix)
