"""Whether two source trees train bit for bit alike: the first steps of the quickstart, in three layouts.

    python -m benchmarks.same_numbers OLD_TREE NEW_TREE [--case tp2]

Each tree runs its own configs/quickstart.yaml with the same seed, in an empty folder of its own. Every metric
of every step must be the same float and the exported weights the same bytes; exits with 1 and names what
differs otherwise. Without trees this one is compared with itself: is training deterministic?
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from safetensors import safe_open

from benchmarks._report import arguments, publish
from hybridrl.observe.jsonl import read

RESULT = {
    "steps": "policy updates of each run",
    "cases": "by layout: metrics compared, sha256 of the exported weights, what differs",
    "not_compared": "beginnings of metrics that are left out, and why",
}

CASES = {"tp2": "{tp: 2}", "pp2": "{pp: 2}", "dp2": "{dp: 2}"}
"""Layouts of the actor on two ranks."""

NOT_COMPARED = {
    "timing_s/": "seconds of wall clock",
    "timing_per_token_ms/": "seconds of wall clock",
    "perf/time_per_step": "seconds of wall clock",
    "perf/throughput": "tokens over seconds of wall clock",
    "perf/overhead_share": "a share of seconds of wall clock",
    "perf/cpu_memory_used_gb": "memory of all programs on the machine",
    "perf/driver_memory_gb": "memory of a process, by its allocator",
    "perf/max_memory_": "memory of a process, by its allocator",
    "sync/time_s": "seconds of wall clock",
}

_HERE = Path(__file__).resolve().parents[1]

_WHOSE = "import pathlib, hybridrl; print(pathlib.Path(hybridrl.__file__).resolve().parents[1])"


def main() -> None:
    options = arguments(
        __doc__,
        places={"old": str(_HERE), "new": str(_HERE)},
        smoke={"case": "tp2", "steps": 3},
        case="",
        steps=5,
    )
    trees = [Path(place).resolve() for place in (options.old, options.new)]
    for tree in trees:
        refuse_other_code(tree)
    names = options.case.split(",") if options.case else list(CASES)
    if unknown := set(names) - CASES.keys():
        raise SystemExit(f"--case {','.join(sorted(unknown))}: it is one of {', '.join(CASES)}")
    found = {name: compare(*(train(tree, name, options.steps) for tree in trees)) for name in names}
    cases = {name: case.as_dict() for name, case in found.items()}
    publish({"steps": options.steps, "cases": cases, "not_compared": NOT_COMPARED}, options.json)
    print(table(found))
    raise SystemExit(any(case.differing for case in found.values()))


class Value(NamedTuple):
    """A metric of one policy update or evaluation."""

    kind: str
    step: int
    name: str


@dataclass(frozen=True)
class Run:
    values: dict[Value, float]
    weights: str
    """SHA-256 of the exported model."""


class Difference(NamedTuple):
    where: str
    old: str
    new: str


@dataclass(frozen=True)
class Case:
    steps: int
    compared: int
    """Values, over all steps."""

    weights: str
    differing: list[Difference]
    """In the order of the run: the first is the cause of the others."""

    def as_dict(self) -> dict[str, object]:
        return {
            "metrics_compared": self.compared,
            "weights_sha256": self.weights,
            "differing": [difference._asdict() for difference in self.differing],
        }


def refuse_other_code(tree: Path) -> None:
    """A process with this PYTHONPATH must import hybridrl from this tree, not from an installed one."""
    told = subprocess.run(
        [sys.executable, "-c", _WHOSE], env=_environment(tree), cwd="/", capture_output=True, text=True
    )
    if told.returncode or Path(told.stdout.strip()) != tree:
        raise SystemExit(
            f"{tree} is no source tree of hybridrl: {told.stdout.strip() or told.stderr.strip()}"
        )


def train(tree: Path, case: str, steps: int) -> Run:
    """The first steps of a tree's quickstart in one layout.

    Raises:
        SystemExit: the run failed; what it printed last is shown.
    """
    overrides = [f"actor.parallel={CASES[case]}", f"run.steps={steps}", "run.name=run", "run.seed=0"]
    overrides += ["run.deterministic=true", "run.export=true"]
    config = str(tree / "configs" / "quickstart.yaml")
    command = [sys.executable, "-m", "hybridrl", "launch", config, *overrides]
    print(f"{case}: {tree}", file=sys.stderr, flush=True)
    with TemporaryDirectory(prefix="same-") as folder:
        ended = subprocess.run(
            command,
            env=_environment(tree),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if ended.returncode:
            raise SystemExit(f"{' '.join(command)}\nended with {ended.returncode}:\n{ended.stdout[-4000:]}")
        run = Path(folder) / "runs" / "run"
        return Run(dict(compared_values(run / "metrics.jsonl")), sha256(run / "export"))


def _environment(tree: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}


def compared_values(file: Path) -> Iterator[tuple[Value, float]]:
    """In the order in which they were written."""
    for record in read(file):
        for name, value in record.metrics.items():
            if not name.startswith(tuple(NOT_COMPARED)):
                yield Value(record.kind, record.step, name), value


def sha256(model: Path) -> str:
    """A digest of all tensors of a model's folder by name, however they lie in its files."""
    tensors = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def compare(old: Run, new: Run) -> Case:
    places = [*old.values, *(place for place in new.values if place not in old.values)]
    pairs = [(f"{p.kind} {p.step}: {p.name}", _bits(old, p), _bits(new, p)) for p in places]
    pairs.append(("sha256 of the exported weights", old.weights, new.weights))
    differing = [Difference(*pair) for pair in pairs if pair[1] != pair[2]]
    return Case(len({p.step for p in places if p.kind == "step"}), len(places), new.weights, differing)


def _bits(run: Run, place: Value) -> str:
    """A text that is equal for equal floats alone; NaN equals NaN."""
    return repr(run.values[place]) if place in run.values else "missing"


def table(cases: dict[str, Case]) -> str:
    lines = [f"{'case':6}{'steps':>7}{'metrics compared':>18}   differing"]
    for name, case in cases.items():
        said = f"{len(case.differing)}" if case.differing else "none"
        lines.append(f"{name:6}{case.steps:7}{case.compared:18}   {said}")
        lines += [f"      {d.where}: {d.old} became {d.new}" for d in case.differing]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
