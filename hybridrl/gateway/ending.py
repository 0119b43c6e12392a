"""How a program ended its episode."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hybridrl.gateway.requests import RefusedError

_MOST_METRICS = 100


@dataclass(frozen=True, slots=True)
class Ending:
    """What the program said with `done`; nothing, if it just ended."""

    reward: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


def read_ending(body: Mapping[str, Any]) -> Ending:
    """
    Raises:
        RefusedError: it has something else than a finite reward and finite metrics.
    """
    if unknown := body.keys() - {"reward", "metrics"}:
        raise RefusedError(f"done takes reward and metrics, not {', '.join(sorted(map(str, unknown)))}")
    metrics = body.get("metrics", {})
    if not isinstance(metrics, dict) or len(metrics) > _MOST_METRICS:
        raise RefusedError(f"metrics is no object of at most {_MOST_METRICS} numbers")
    numbers = {str(name): _number(str(name), value) for name, value in metrics.items()}
    return Ending(_number("reward", body.get("reward", 0.0)), numbers)


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RefusedError(f"{name} = {value!r:.40} is no finite number")
    return float(value)
