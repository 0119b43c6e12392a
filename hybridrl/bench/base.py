"""What a benchmark is: cases of fixed sizes, and metrics with units that each case measures several times."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Samples = Mapping[str, Sequence[float]]
"""Metric -> one value for each repeat, without the warm-up."""

OURS = "hybridrl"
"""The contestant of every case that names no other."""


@dataclass(frozen=True, slots=True)
class Metric:
    unit: str
    """`s`, `tokens/s/device`, `x` for a ratio, `share`, `MB` or `kB`."""

    meaning: str
    """What the number is over, in a phrase that docs/benchmarks.md prints."""

    better: Literal["lower", "higher", ""] = ""
    """"": neither; the number describes the case."""

    gated: bool = False
    """Whether `--check` fails when it gets worse."""

    headline: str = ""
    """What the README calls it; "": the README does not have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One workload. Two runs of it can be compared if `config` is equal."""

    name: str
    config: Mapping[str, Any]
    """All sizes, as JSON."""

    warm_up: int = 1
    """Repeats that are not counted."""

    repeats: int = 5
    readme: bool = True
    """Whether the README has its headlines."""

    gpus: int = 0
    """GPUs that it needs; a machine without them skips the case unless it is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    name: str
    about: str
    metrics: Mapping[str, Metric]
    cases: Sequence[Case]
    smoke: Sequence[Case]
    """The same code at sizes that take a second or a few; the numbers mean nothing."""

    measure: Callable[[Case], Samples]
    """Runs one case: its warm-up, then its repeats.

    Raises:
        HybridRLError: this machine cannot run the case.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one contestant measured in one case."""

    case: Case
    samples: Samples
    contestant: str = OURS
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of a contestant that runs in another environment; empty: those of this one."""
