"""What became of sampled tokens and of the engines' time: every share of it has a cause, and they sum to 1.

A token is settled once its group is trained on or given up. Tokens that are sampled and not settled are in
flight.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hybridrl.batch import Batch
from hybridrl.types import Group, Usage

Fate = Literal["with_gradient", "no_gradient", "stale", "flat", "aborted"]
FATES: tuple[Fate, ...] = ("with_gradient", "no_gradient", "stale", "flat", "aborted")
"""What becomes of a sampled token: trained on, with an advantage that is not 0 or one that is; not trained
on, because it is too old, its group was flat and replaced, or its group was ended or left over."""


@dataclass(slots=True)
class Goodput:
    """Counts tokens by what became of them, over a run."""

    lost: Literal["stale", "aborted"] = "aborted"
    """What the loss of a group that engines end early is called."""

    sampled: int = 0
    settled: Counter[str] = field(default_factory=Counter)
    _step: Counter[str] = field(default_factory=Counter)
    """Settled tokens since the last report."""

    def lose(self, groups: Iterable[Group], fate: Fate) -> None:
        """These groups are not trained on."""
        self.lose_tokens(sum(map(num_sampled, groups)), fate)

    def lose_tokens(self, count: int, fate: Fate) -> None:
        """So many sampled tokens are not trained on."""
        self._step[fate] += count

    def train(self, batch: Batch) -> None:
        """A step has trained on a batch."""
        kept_N = batch.trained_N if batch.dropped_N is None else np.where(batch.dropped_N, 0, batch.trained_N)
        moved = int(kept_N[moving(batch)].sum())
        greedy = sum(num_sampled(group.greedy) for group in batch.groups if group.greedy)
        self._step["with_gradient"] += moved
        self._step["no_gradient"] += int(batch.trained_N.sum()) - moved + greedy
        self._step["stale"] += 0 if batch.stale_N is None else int(batch.stale_N.sum())

    def resume(self, groups: Iterable[Group]) -> None:
        """The run resumes with these finished groups, which an earlier session sampled."""
        self.sampled += sum(map(num_sampled, groups))

    def report(self, usage: Usage, *, waiting_share: float = 0.0) -> dict[str, float]:
        """Metrics of the time since the last report.

        Args:
            waiting_share: share of that time in which no group was in an engine and rewards were awaited.
        """
        self._step[self.lost] += usage.aborted_tokens
        step, self._step = self._step, Counter()
        self.settled += step
        self.sampled += usage.sampled_tokens
        return {
            "rollout/engines/serving": float(usage.serving_engines),
            "rollout/engines/replaced": float(usage.replaced_engines),
            "rollout/groups/asked_again": float(usage.asked_again),
            "rollout/tokens/sampled": float(usage.sampled_tokens),
            "rollout/tokens/recomputed": float(usage.recomputed_tokens),
            "rollout/tokens/in_flight": float(self.sampled - self.settled.total()),
            **{f"rollout/tokens/{fate}": float(step[fate]) for fate in FATES},
            **shares(step, usage, waiting_share),
            **({} if (gap := usage.kept_cache_error) is None else {"rollout/kept_cache_error": gap}),
            **episode_metrics(usage.sums),
        }


def episode_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics of what episodes counted.

    Args:
        sums: names as in rollout/turns.py: tool/<name>/calls, environment/<name>/episodes, cached, ...
    """
    found: dict[str, float] = {}
    if sums.get("cacheable"):
        found["rollout/cached_share"] = sums["cached"] / sums["cacheable"]
    if retried := sums.get("episodes/retried"):
        found["episode/retried"] = retried
    for name, value in sums.items():
        kind, _, rest = name.partition("/")
        owner, _, what = rest.rpartition("/")
        if kind == "environment" and what != "episodes":
            found[name] = value / sums[f"environment/{owner}/episodes"]
        elif kind == "gateway":
            found[name] = value
        elif kind == "tool" and what == "calls":
            found[name] = value
            found[f"tool/{owner}/errors"] = sums.get(f"tool/{owner}/errors", 0.0) / value
            found[f"tool/{owner}/time_s"] = sums.get(f"tool/{owner}/seconds", 0.0) / value
        elif kind == "tool" and what not in ("errors", "seconds"):
            found[f"tool/{owner}/errors/{what}"] = value / sums[f"tool/{owner}/calls"]
    return found


def shares(step: Mapping[str, int], usage: Usage, waiting_share: float) -> dict[str, float]:
    """Shares of the engines' seconds by cause; they sum to 1.

    The seconds in which an engine generated are divided by what became of the tokens of the step.
    """
    engine_s = usage.generating_s + usage.paused_s + usage.idle_s
    if not engine_s:
        return {}
    tokens = sum(step.values())
    sampling_s = max(0.0, usage.generating_s - usage.recomputing_s)
    rewards_s = min(waiting_share * engine_s, usage.idle_s)
    seconds = {
        **{fate: sampling_s * (step.get(fate, 0) / tokens if tokens else 0.0) for fate in FATES},
        "in_flight": 0.0 if tokens else sampling_s,
        "recomputed": usage.generating_s - sampling_s,
        "paused": usage.paused_s,
        "rewards": rewards_s,
        "idle": usage.idle_s - rewards_s,
    }
    found = {f"goodput/{cause}": spent / engine_s for cause, spent in seconds.items()}
    return {"perf/engines_generating": usage.generating_s / engine_s, **found}


def moving(batch: Batch) -> np.ndarray:
    """Trajectories whose tokens get a gradient from the policy loss, bool [N].

    If the trainer ranks compute the advantages, these are the ones of groups whose rewards differ.
    """
    if batch.advantage_N is not None:
        return batch.advantage_N != 0
    low_G = np.full(len(batch.groups), np.inf)
    high_G = -low_G
    np.minimum.at(low_G, batch.group_N, batch.reward_N)
    np.maximum.at(high_G, batch.group_N, batch.reward_N)
    return (high_G > low_G)[batch.group_N]


def num_sampled(group: Group) -> int:
    """Tokens that were sampled for a group, its greedy answer included."""
    own = sum(trajectory.sampled_tokens for trajectory in group.trajectories)
    return own + (num_sampled(group.greedy) if group.greedy else 0)
