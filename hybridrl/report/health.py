"""Health bands: the range in which a metric of a healthy run lies, where one holds for every run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hybridrl.observe.names import FIRST_RATIO_ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    low: float = -math.inf
    high: float = math.inf
    source: str
    """What the limits follow from."""

    @property
    def text(self) -> str:
        if math.isinf(self.low):
            return f"healthy: at most {self.high:g}" if self.high else "healthy: 0"
        if math.isinf(self.high):
            return f"healthy: at least {self.low:g}"
        return (
            f"healthy: {self.low:g}" if self.low == self.high else f"healthy: {self.low:g} to {self.high:g}"
        )

    def share_outside(self, value_S: np.ndarray) -> float:
        """Share of some values that are not in the band."""
        return float(((value_S < self.low) | (value_S > self.high)).mean())


BANDS: Mapping[str, Band] = {
    "actor/entropy": Band(
        low=0.1, source="below it nearly all answers of a group are equal (miles' advisory)"
    ),
    "actor/pg_clipfrac": Band(
        high=0.2, source="0.1 to 20 % of tokens are clipped in a run that learns (verl)"
    ),
    "training/rollout_probs_diff_mean": Band(high=0.005, source="verl's FAQ: a problem above 0.01"),
    FIRST_RATIO_ERROR: Band(low=0.0, high=0.0, source="old_logp is computed over the same microbatches"),
    "rollout/zero_std": Band(high=0.5, source="a flat group has no gradient (miles' advisory)"),
    "response_length/clip_ratio": Band(high=0.25, source="a truncated answer rarely has its reward (miles)"),
    "response/aborted_ratio": Band(high=0.05, source="aborted answers bias what is trained on (miles)"),
    "critic/vf_explained_var": Band(low=0.0, high=1.0, source="at 0 the critic is no better than a constant"),
    "perf/dp_idle_share": Band(high=0.1, source="ranks that wait for the busiest rank"),
    "sync/checksum_ok": Band(low=1.0, high=1.0, source="both sides of the swap have the same weights"),
    "sync/replays": Band(low=0.0, high=0.0, source="writes that were repeated after a fault"),
    "actor/skipped": Band(low=0.0, high=0.0, source="optimizer steps whose gradient was not finite"),
}
"""Limits of a metric by its name. A metric that is not here has no limits that hold for every run."""
