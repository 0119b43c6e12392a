"""How often the guards say something about correct steps, which they should not, and what that shows.

Every step is simulated as a correct run would have it, and the guard itself is asked, as the run asks it. The
upper bound is of the rate of alarms, at 95 % confidence: 3 / steps where there was none. Guards whose bound
is proved (kl_sign) have it checked here; for the others this is what there is. What the guards are for, they
must find: tests/unit/algorithms/test_guards.py.
"""

from typing import Any

import torch

from benchmarks._guard_columns import COLUMNS
from benchmarks._guard_scalars import SCALARS
from benchmarks._report import arguments, publish

RESULT = {
    "confidence": "of the upper bounds",
    "regimes": "by guard and regime: steps, alarms, their rate and its upper bound",
    "worst": "by guard: the same over all of its regimes, and the rate of the worst one",
}

SEVERITY = {
    "groups": "error, warning",
    "kl_sign": "error",
    "mask": "error, warning",
    "rollout_logp": "error",
    "first_ratio": "error",
    "centred": "error",
    "length": "warning",
}
"""What an alarm of the guard may be; an error ends the run."""

CONFIDENCE = 0.95


def main() -> None:
    options = arguments(__doc__, smoke={"steps": 20}, steps=30_000, seed=0)
    rows = [measure(*regime, options.steps, options.seed) for regime in regimes()]
    publish({"confidence": CONFIDENCE, "regimes": rows, "worst": worst(rows)}, options.json)


def regimes() -> list[tuple[str, str]]:
    """(guard, regime) of everything that is simulated."""
    return [(guard, name) for guard in SEVERITY for name in {**COLUMNS, **SCALARS}[guard]]


def measure(guard: str, name: str, steps: int, seed: int) -> dict[str, Any]:
    """The row of a regime in the table."""
    draw = torch.Generator().manual_seed(seed)
    found = {**COLUMNS, **SCALARS}[guard][name](steps, draw)
    alarms = sum(finding is not None for finding in found)
    return {
        "guard": guard,
        "severity": SEVERITY[guard],
        "regime": name,
        "steps": steps,
        "alarms": alarms,
        "rate": alarms / steps,
        "rate_at_most": float(f"{highest_mean(alarms) / steps:.3g}"),
    }


def worst(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each guard, over all of its regimes together, and in the worst of them."""
    found = {}
    for guard in SEVERITY:
        own = [row for row in rows if row["guard"] == guard]
        steps, alarms = sum(row["steps"] for row in own), sum(row["alarms"] for row in own)
        at_most = float(f"{highest_mean(alarms) / steps:.3g}")
        found[guard] = {
            "steps": steps,
            "alarms": alarms,
            "rate_at_most": at_most,
            "worst_regime_rate": max(row["rate"] for row in own),
        }
    return found


def highest_mean(count: int) -> float:
    """The largest mean of a Poisson distribution that gives `count` or fewer with 5 % or more: 3.0 for 0."""
    low, high = torch.zeros((), dtype=torch.float64), torch.tensor(10.0 + 3 * count, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        seldom = torch.special.gammaincc(torch.tensor(count + 1.0).double(), middle) < 1 - CONFIDENCE
        low, high = (low, middle) if seldom else (middle, high)
    return float(low)


if __name__ == "__main__":
    main()
