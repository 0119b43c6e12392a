"""Runs a benchmark: its cases one after the other, each told as soon as it is known."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from hybridrl.bench import gate, record, table
from hybridrl.bench.base import OURS, Bench, Case, Found
from hybridrl.bench.names import NameOfBench, Peer
from hybridrl.bench.record import Row
from hybridrl.errors import ConfigError, ResourceError
from hybridrl.hosts.machine import Machine

RESULTS = Path("benchmarks/results")
"""The folder of stored results, seen from its folder."""

Contest = Callable[[Bench, Case], Sequence[Found]]
"""Measures a case with all contestants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line says."""

    cases: Sequence[str] = ()
    """Names; empty: all."""

    smoke: bool = False
    repeats: int | None = None
    check: bool = False
    store: bool = False
    results: Path = RESULTS
    tolerance: float = gate.TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    rows: Sequence[Row]
    compared: Sequence[gate.Compared] = ()

    @property
    def holds(self) -> bool:
        return not any(one.failed for one in self.compared)


def bench_of(name: NameOfBench) -> Bench:
    """The benchmark of a name. It imports what the benchmark measures."""
    return importlib.import_module(f"hybridrl.bench.workloads.{name}").BENCH


def names() -> tuple[NameOfBench, ...]:
    return get_args(NameOfBench)


def refuse_together(name: NameOfBench, request: Request, peer: Peer | None) -> None:
    """Refuse options that contradict one another, before anything is imported that is slow.

    Raises:
        ConfigError: names both options.
    """
    if request.smoke and (request.check or request.store):
        raise ConfigError(
            "--smoke takes sizes whose numbers mean nothing, so nothing is compared or stored",
            fix="leave out --smoke, or --check and --store",
        )
    if request.check and request.store:
        raise ConfigError("--store would replace what --check compares with", fix="give one of them")
    if peer and name != "e2e":
        raise ConfigError(f"--peer {peer} runs whole steps, bench {name} does not", fix="hybridrl bench e2e")
    if peer and request.check:
        raise ConfigError("--check compares hybridrl with itself", fix="leave out --peer, or --check")


def on_gpus(bench: Bench, request: Request) -> list[Case]:
    """The cases that were named, or all that need GPUs, whatever this machine has.

    Raises:
        ConfigError: a named case needs none, or does not exist.
    """
    known = {case.name: case for case in bench.cases if case.gpus}
    if unknown := [name for name in request.cases if name not in known]:
        raise ConfigError(
            f"bench {bench.name} has no case {', '.join(unknown)} on GPUs", fix=f"there is {', '.join(known)}"
        )
    return [known[name] for name in request.cases or known]


def run(
    bench: Bench, request: Request, say: Callable[[str, str], None], contest: Contest | None = None
) -> Outcome:
    """Measure the cases, then compare or store them.

    Args:
        say: heading and text of a line, for a person.
        contest: measures a case instead of the benchmark alone.

    Raises:
        ConfigError: an unknown case, or nothing stored to compare with; before anything is measured.
        ResourceError: a case that was named needs more GPUs than there are.
    """
    cases = _chosen(bench, request)
    stored = record.read(request.results / f"{bench.name}.jsonl")
    if request.check:
        _refuse_unstored(bench, cases, stored, request.results)
    rows = []
    for found in _measured(bench, cases, contest or _alone):
        rows.append(record.row(bench, found))
        for line in table.lines(bench, rows[-1]):
            say(*line)
    compared = gate.compare(bench, _ours(rows), stored, request.tolerance) if request.check else []
    if request.store:
        record.store(request.results / f"{bench.name}.jsonl", rows)
    return Outcome(rows=rows, compared=compared)


def verdicts(found: Outcome) -> Iterator[str]:
    """What --check says: a line for each metric, worse ones first."""
    for one in sorted(found.compared, key=lambda one: -one.ratio):
        word = "WORSE" if one.failed else "ok"
        change = f"{table.digits(one.now)}, stored {table.digits(one.stored)}"
        yield f"{word:<9} {one.case}: {one.metric} {change}, {one.ratio:.2f} x as bad"


def _measured(bench: Bench, cases: Sequence[Case], contest: Contest) -> Iterator[Found]:
    for case in cases:
        yield from contest(bench, case)


def _alone(bench: Bench, case: Case) -> Sequence[Found]:
    return [Found(case=case, samples=bench.measure(case))]


def _ours(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["contestant"] == OURS]


def _chosen(bench: Bench, request: Request) -> list[Case]:
    known = {case.name: case for case in (bench.smoke if request.smoke else bench.cases)}
    if unknown := [name for name in request.cases if name not in known]:
        raise ConfigError(
            f"bench {bench.name} has no case {', '.join(unknown)}", fix=f"its cases are {', '.join(known)}"
        )
    gpus = len(Machine.here().gpus)
    fitting = [name for name, case in known.items() if case.gpus <= gpus]
    changes: dict[str, Any] = {} if request.repeats is None else {"repeats": request.repeats}
    chosen = [replace(known[name], **changes) for name in request.cases or fitting]
    for case in chosen:
        if case.gpus > gpus:
            raise ResourceError(
                f"bench {bench.name}: case {case.name} needs {case.gpus} GPUs, this machine has {gpus}",
                fix="measure it on a machine that has them",
            )
    return chosen


def _refuse_unstored(bench: Bench, cases: Sequence[Case], stored: Sequence[Row], results: Path) -> None:
    """Minutes of measurement whose result nothing can be compared with would be lost."""
    here = record.machine_class(record.hardware_here())
    rows = [
        {
            "machine_class": here,
            "case": case.name,
            "contestant": OURS,
            "config_hash": record.config_hash(bench.name, case),
            "metrics": {},
        }
        for case in cases
    ]
    if not stored:
        raise ConfigError(
            f"no stored run of bench {bench.name} in {results}", fix=f"hybridrl bench {bench.name} --store"
        )
    gate.compare(bench, rows, stored, 1.0)
