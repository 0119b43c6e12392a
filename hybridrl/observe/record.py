"""What every sink receives: one line of metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["step", "evaluation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The metrics of one policy update, or of one held-out evaluation of a policy."""

    kind: Kind
    step: int
    time: float
    """Unix time at which it was published, seconds."""

    wall_s: float
    """Seconds of training so far, over all sessions of the run, without the time between a crash and the
    resume."""

    metrics: Mapping[str, float]
