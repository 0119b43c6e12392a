"""The metrics of one policy update, as pure functions of its batch, reports and times.

Shape letters: N trajectories, G groups.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import psutil

from hybridrl.batch import Batch, Minibatch
from hybridrl.config.schema import REWARD_MODEL
from hybridrl.observe.names import FIRST_RATIO_ERROR, over
from hybridrl.types import HANG_PART, Ended, StepReport, SwapReport, mean

COMPUTE = ("gen", "old_log_prob", "ref", "values", "update_critic", "update_actor")
"""Spans of generation and training; all other time of a step is overhead."""

_GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the metrics of a run are measured against."""

    max_prompt_tokens: int
    num_devices: int
    """GPUs that share the work; 1 on a machine without GPUs."""


def step_metrics(
    batch: Batch,
    reports: Sequence[StepReport],
    swap: SwapReport | None,
    spent_s: Mapping[str, float],
    limits: Limits,
) -> dict[str, float]:
    """Everything that the driver knows about a policy update.

    Args:
        spent_s: seconds by span name.
    """
    return {
        "training/global_step": float(batch.step),
        **reward_metrics(batch),
        **group_metrics(batch),
        **({} if batch.dropped_N is None else {"rollout/dropped_share": float(batch.dropped_N.mean())}),
        **({} if batch.still_N is None else {"training/skipped_share": float(batch.still_N.mean())}),
        **update_metrics(reports),
        **length_metrics(batch, limits),
        **turn_metrics(batch),
        **time_metrics(batch, spent_s, limits.num_devices),
        **({} if swap is None else sync_metrics(swap)),
    }


def reward_metrics(batch: Batch) -> dict[str, float]:
    metrics = {**_spread("critic/score", batch.score_N), **_spread("critic/rewards", batch.reward_N)}
    if batch.advantage_N is not None:
        metrics |= _spread("critic/advantages", batch.advantage_N, weight_N=batch.trained_N)
    parts = defaultdict(list)
    for trajectory in batch.trajectories:
        for name, value in trajectory.reward_parts.items():
            parts[name].append(value)
    if HANG_PART in parts:  # only an answer that timed out has it: the mean is a share of all answers
        parts[HANG_PART] += [0.0] * (len(batch.reward_N) - len(parts[HANG_PART]))
    if REWARD_MODEL in parts:
        metrics |= _spread(f"{REWARD_MODEL}/score", np.array(parts.pop(REWARD_MODEL)))
    return metrics | {f"reward/{name}/mean": mean(values) for name, values in parts.items()}


def group_metrics(batch: Batch) -> dict[str, float]:
    """Shares of groups whose rewards are all equal and carry no signal; a group of one answer counts as
    such."""
    low_G = np.full(len(batch.groups), np.inf)
    high_G = -low_G
    np.minimum.at(low_G, batch.group_N, batch.reward_N)
    np.maximum.at(high_G, batch.group_N, batch.reward_N)
    flat_G = low_G == high_G
    return {
        "rollout/zero_std": float(flat_G.mean()),
        "rollout/zero_std_all": float((flat_G & (low_G > 0)).mean()),
        "rollout/zero_std_none": float((flat_G & (low_G <= 0)).mean()),
    }


def length_metrics(batch: Batch, limits: Limits) -> dict[str, float]:
    finish_N = np.array([t.finish for t in batch.trajectories])
    prompt_N = np.array([t.prompt_tokens for t in batch.trajectories])
    response_N = np.array([t.response_tokens for t in batch.trajectories])
    whole_N = finish_N != "abort"
    return {
        **_spread("response_length", response_N),
        "response_length/clip_ratio": float((finish_N == "length").mean()),
        **(_spread("response_length_non_aborted", response_N[whole_N]) if whole_N.any() else {}),
        "response/aborted_ratio": float((~whole_N).mean()),
        **_spread("prompt_length", prompt_N),
        "prompt_length/clip_ratio": float((prompt_N >= limits.max_prompt_tokens).mean()),
        "perf/total_num_tokens": float(batch.length_N.sum()),
    }


def turn_metrics(batch: Batch) -> dict[str, float]:
    """Turns of the episodes, and why they ended; nothing without an environment."""
    ended = Counter(t.ended for t in batch.trajectories if t.ended is not None)
    if not ended:
        return {}
    turn_N = np.array([t.turns for t in batch.trajectories])
    shares = {f"episode/ended/{why}": ended[why] / len(turn_N) for why in get_args(Ended)}
    return {**_spread("num_turns", turn_N), **shares}


def balance_metrics(batch: Batch, minibatches: Sequence[Minibatch]) -> dict[str, float]:
    """Tokens of the data-parallel ranks in one pass over the batch, and the balance of their work."""
    partitioned = [
        [i for minibatch in minibatches for micro in minibatch.rows[rank] for i in micro]
        for rank in _ranks(minibatches)
    ]
    passes = sum(map(len, partitioned)) / len({i for rows in partitioned for i in rows})
    tokens = [float(batch.length_N[rows].sum()) / passes for rows in partitioned]
    low, high = min(tokens), max(tokens)
    return {
        "global_seqlen/min": low,
        "global_seqlen/max": high,
        "global_seqlen/minmax_diff": high - low,
        "global_seqlen/mean": mean(tokens),
        "perf/dp_idle_share": mean([minibatch.idle_share for minibatch in minibatches]),
    }


def _ranks(minibatches: Sequence[Minibatch]) -> range:
    return range(len(minibatches[0].rows))


def update_metrics(reports: Sequence[StepReport]) -> dict[str, float]:
    """One value per name, combined over the optimizer steps of a policy update as `names.over` says."""
    values = defaultdict(list)
    for report in reports:
        own = {"actor/loss": report.loss, "actor/grad_norm": report.grad_norm, "actor/lr": report.lr}
        for name, value in {**own, **report.metrics}.items():
            values[name].append(float(value))
    combine = {"mean": mean, "max": max, "min": min, "last": lambda found: found[-1]}
    metrics = {name: combine[over(name)](found) for name, found in values.items()}
    if "actor/ratio_max_abs_err" in values:
        metrics[FIRST_RATIO_ERROR] = values["actor/ratio_max_abs_err"][0]
    return {**metrics, "actor/num_updates": float(len(reports))}


def time_metrics(batch: Batch, spent_s: Mapping[str, float], num_devices: int) -> dict[str, float]:
    metrics = {f"timing_s/{name}": seconds for name, seconds in spent_s.items()}
    num_tokens = float(batch.length_N.sum())
    num_answer_tokens = float(sum(t.response_tokens for t in batch.trajectories))
    for name in ("gen", "ref", "values", "adv", "old_log_prob", "update_critic", "update_actor"):
        count = num_answer_tokens if name == "gen" else num_tokens
        if name in spent_s and count:
            metrics[f"timing_per_token_ms/{name}"] = spent_s[name] * 1000 / count
    step_s = spent_s.get("step", 0.0)
    if step_s:
        metrics["perf/time_per_step"] = step_s
        metrics["perf/throughput"] = num_tokens / (step_s * num_devices)
        metrics["perf/overhead_share"] = overhead_share(spent_s)
    return metrics


def overhead_share(spent_s: Mapping[str, float]) -> float:
    """Share of the step's time in neither generation nor trainer; 0 if these overlap by more than that."""
    return max(0.0, 1.0 - sum(spent_s.get(name, 0.0) for name in COMPUTE) / spent_s["step"])


def sync_metrics(swap: SwapReport) -> dict[str, float]:
    equal = swap.checksums_equal
    return {
        **({} if equal is None else {"sync/checksum_ok": float(equal)}),
        "sync/in_place": float(equal is not None),
        "sync/time_s": swap.time_s,
        "sync/written_bytes": float(swap.written_bytes),
        "sync/sent_bytes": float(swap.sent_bytes),
        "sync/staging_bytes": float(swap.staging_bytes),
        "sync/tensors": float(swap.num_tensors),
        "sync/replays": float(swap.replays),
    }


def memory_metrics() -> dict[str, float]:
    """Memory in use on this machine and in this process, now."""
    return {
        "perf/cpu_memory_used_gb": psutil.virtual_memory().used / _GIB,
        "perf/driver_memory_gb": psutil.Process().memory_info().rss / _GIB,
    }


def heldout_reward(metrics: Mapping[str, float]) -> float | None:
    """The one number of an evaluation: mean@k, averaged over sources. None: there is no such metric."""
    found = [v for name, v in metrics.items() if name.startswith("val-core/") and "/reward/mean_at_" in name]
    return mean(found) if found else None


def _spread(name: str, value_N: np.ndarray, *, weight_N: np.ndarray | None = None) -> dict[str, float]:
    """Mean, max and min; if there are weights, of the values whose weight is not 0."""
    if weight_N is not None:
        value_N, weight_N = value_N[weight_N > 0], weight_N[weight_N > 0]
    if len(value_N) == 0:
        return {}
    middle = np.average(value_N.astype(np.float64), weights=weight_N)
    return {
        f"{name}/mean": float(middle),
        f"{name}/max": float(value_N.max()),
        f"{name}/min": float(value_N.min()),
    }
