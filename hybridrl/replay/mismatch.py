"""Why trainer and engine give a sampled token another probability: `hybridrl why RUN --mismatch`.

The difference of a token is the engine's log-probability less the trainer's, as the run recorded both. It is
split by computing the trainer's value again, each time with one more thing as the engine has it:

    recorded by the trainer
      -> computed again, packed as it was    precision: that of the hardware
      -> each trajectory alone               packing
      -> with the engine's experts           routing
      -> in fp32                             precision
      -> by the weights of its version       stale weights
      -> as the engine samples               sampling mask

The parts of a token add up to its difference. What is left at the end is about tokenisation in trajectories
whose text gives other tokens, about stale weights where the weights of a version are gone, and else has no
known cause: wrong weights in an engine, for example.
Shape letters: V trained tokens in the order of trajectories, N trajectories.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

CAUSES = (
    "stale weights",
    "tokenisation",
    "sampling mask",
    "routing",
    "precision",
    "packing",
    "unexplained",
)

ROUNDING = 1e-5
"""A part of a token that is smaller counts as none: fp32 on both sides."""

_LEAST_GAIN = 0.5
"""Share of the squared rest that a sampling mask has to explain, so that it is believed."""


@dataclass(frozen=True, slots=True)
class Variant:
    """How the trainer computes log-probabilities once more."""

    alone: bool = False
    """Every trajectory is in a microbatch of its own."""

    experts: Literal["trainer", "engine"] = "trainer"
    precision: Literal["run", "fp32"] = "run"
    version: int | None = None
    """Version of the weights; None: those that the step began with."""


Compute = Callable[[Variant], np.ndarray]
"""Gives log-probabilities [V]."""

Shifts = Mapping[str, np.ndarray]
"""Name of a way to sample -> what it adds to the log-probability of each token, [V]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a run recorded of the trained tokens of a step, [V] each."""

    engine_V: np.ndarray
    trainer_V: np.ndarray
    version_V: np.ndarray
    trajectory_V: np.ndarray
    current: int
    """Version of the weights that the step began with."""

    has_experts: bool = False
    kept_versions: frozenset[int] = frozenset()
    """Older versions whose weights are there."""

    other_tokens_N: np.ndarray | None = None
    """Whether the text of a trajectory gives other tokens than it has; None: that is not known."""


@dataclass(frozen=True, slots=True)
class Split:
    parts: Mapping[str, np.ndarray]
    """Cause -> its part of the difference of each token, [V]."""

    sampling: str
    """The way to sample that was found to explain a part; "": none."""

    lost_versions: tuple[int, ...]
    """Versions of tokens whose weights are gone."""


def split(recorded: Recorded, compute: Compute, shifts: Callable[[], Shifts]) -> Split:
    """Split the difference of every token.

    Args:
        shifts: ways to sample that engines have; called only if something is left that they may explain.
    """
    parts = {cause: np.zeros(len(recorded.engine_V)) for cause in CAUSES}
    packed_V, alone_V = compute(Variant()), compute(Variant(alone=True))
    parts["packing"] = alone_V - packed_V
    experts: Literal["trainer", "engine"] = "engine" if recorded.has_experts else "trainer"
    routed_V = compute(Variant(alone=True, experts=experts)) if recorded.has_experts else alone_V
    parts["routing"] = routed_V - alone_V
    exact_V = compute(Variant(alone=True, experts=experts, precision="fp32"))
    parts["precision"] = (packed_V - recorded.trainer_V) + (exact_V - routed_V)
    aged_V, lost = _aged(recorded, exact_V, experts, compute)
    parts["stale weights"] = aged_V - exact_V
    rest_V = recorded.engine_V - aged_V
    parts["sampling mask"], sampling = _sampling(rest_V, ~np.isin(recorded.version_V, lost), shifts)
    rest_V = rest_V - parts["sampling mask"]
    for cause, at_V in _left(recorded, lost):
        parts[cause] = parts[cause] + np.where(at_V, rest_V, 0.0)
    return Split(parts, sampling, lost)


def _aged(
    recorded: Recorded, exact_V: np.ndarray, experts: Literal["trainer", "engine"], compute: Compute
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Log-probabilities by the weights of each token's version, and the versions that are gone."""
    found_V, lost = exact_V.copy(), list[int]()
    for version in sorted({*recorded.version_V.tolist()} - {recorded.current}):
        if version not in recorded.kept_versions:
            lost.append(version)
            continue
        at_V = recorded.version_V == version
        variant = Variant(alone=True, experts=experts, precision="fp32", version=version)
        found_V[at_V] = compute(variant)[at_V]
    return found_V, tuple(lost)


def _sampling(
    rest_V: np.ndarray, known_V: np.ndarray, shifts: Callable[[], Shifts]
) -> tuple[np.ndarray, str]:
    """The shift that explains most of what is left, and its name; zeros if none explains enough."""
    none_V = np.zeros(len(rest_V))
    before = float(np.square(rest_V[known_V]).sum())
    if before <= ROUNDING**2 * max(1, int(known_V.sum())):
        return none_V, ""
    after = {name: float(np.square((rest_V - shift_V)[known_V]).sum()) for name, shift_V in shifts().items()}
    best = min(after, key=lambda name: after[name], default="")
    if not best or after[best] > (1 - _LEAST_GAIN) * before:
        return none_V, ""
    return shifts()[best], best


def _left(recorded: Recorded, lost: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Cause -> the tokens whose rest it gets; each token is in one."""
    stale_V = np.isin(recorded.version_V, lost)
    others_N = recorded.other_tokens_N
    other_V = np.zeros_like(stale_V) if others_N is None else others_N[recorded.trajectory_V] & ~stale_V
    yield "stale weights", stale_V
    yield "tokenisation", other_V
    yield "unexplained", ~stale_V & ~other_V


def lines(recorded: Recorded, found: Split) -> Iterator[str]:
    """What a person reads about the split."""
    difference_V = recorded.engine_V - recorded.trainer_V
    yield (
        f"{len(difference_V)} tokens, the engine less the trainer: {_size(difference_V)} nats on average, "
        f"at most {np.abs(difference_V).max(initial=0.0):.2g}"
    )
    yield f"{'cause':<16}{'mean':>10}{'largest':>10}{'tokens':>10}"
    for cause in CAUSES:
        part_V = found.parts[cause]
        touched = int((np.abs(part_V) > ROUNDING).sum())
        yield f"{cause:<16}{_size(part_V):>10}{np.abs(part_V).max(initial=0.0):>10.2g}{touched:>10}"
    if found.sampling:
        yield f"the engine's probabilities are those of {found.sampling}"
    if found.lost_versions:
        gone = ", ".join(map(str, found.lost_versions))
        yield f"no checkpoint of version {gone}: all that is left of their tokens counts as stale weights"
    if recorded.other_tokens_N is None:
        yield "tokenisation was not looked at: the tokenizer of the run is not here"


def _size(part_V: np.ndarray) -> str:
    return f"{np.abs(part_V).mean() if len(part_V) else 0.0:.2g}"
