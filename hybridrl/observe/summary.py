"""Makes summary.json, and the last lines that a run prints, from its records."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hybridrl.observe.metrics import heldout_reward, overhead_share
from hybridrl.observe.names import FIRST_RATIO_ERROR, LOGP_GAP
from hybridrl.observe.record import Record
from hybridrl.observe.units import duration
from hybridrl.wording import counted

SUMMARY_FILE = "summary.json"

_CHECKSUMS = {True: "all checksums equal", False: "CHECKSUMS DIFFER", None: "through the engine's own loader"}

_MOST_CAUSES = 3
"""Causes of engine time that the last lines name."""

LIBRARIES = ("hybridrl", "torch", "megatron-core", "sglang", "ray", "transformers", "mlflow", "numpy")


def summarise(records: Sequence[Record], rest_s: Mapping[str, float]) -> dict[str, Any]:
    """The summary of a run's records; an entry is None if nothing was measured, or something that is not a
    number.

    Args:
        records: records of all sessions of the run, from metrics.jsonl.
        rest_s: seconds of spans after the last step, as the last checkpoint.
    """
    steps = [r for r in records if r.kind == "step"]
    in_place = [r for r in steps if r.metrics.get("sync/in_place") != 0.0]
    heldout = [reward for r in records if (reward := heldout_reward(r.metrics)) is not None]
    spent_s = _phases(records, rest_s)
    return {
        "heldout_before": heldout[0] if heldout else None,
        "heldout_after": heldout[-1] if heldout else None,
        "train_wall_s": steps[-1].wall_s if steps else 0.0,
        "steps": steps[-1].step if steps else 0,
        "logprob_max_abs_diff": _largest(steps, LOGP_GAP),
        "first_ratio_max_abs_err": _largest(steps, FIRST_RATIO_ERROR),
        "swap_checksums_ok": all(r.metrics.get("sync/checksum_ok") == 1.0 for r in in_place)
        if in_place
        else None,
        "swaps": len(steps),
        "largest_lag": max((int(r.metrics.get("rollout/lag/max", 0.0)) for r in steps), default=0),
        "overhead_share": overhead_share(spent_s) if spent_s.get("step") else None,
        "seconds_by_phase": {name: round(seconds, 3) for name, seconds in spent_s.items()},
        "non_finite_metrics": sum(not math.isfinite(v) for r in records for v in r.metrics.values()),
        "tokens": int(sum(r.metrics.get("perf/total_num_tokens", 0.0) for r in steps)),
        "rollout_tokens": _totals(steps, "rollout/tokens/"),
        "goodput": _engine_shares(steps),
    }


def versions() -> dict[str, str]:
    """Versions of the libraries that are installed."""
    found = {name: _version(name) for name in LIBRARIES}
    return {name: text for name, text in found.items() if text}


def closing_lines(
    summary: Mapping[str, Any],
    reward_word: str,
    files: Mapping[str, str],
    following: Sequence[tuple[str, str]],
) -> list[str]:
    """The last lines that a run of reinforcement learning prints.

    Args:
        reward_word: "reward", or "accuracy" if every reward is 0 or 1.
        files, following: see end_lines().
    """
    return end_lines(summary, _results(summary, reward_word), files, following)


def end_lines(
    summary: Mapping[str, Any],
    results: Iterable[str],
    files: Mapping[str, str],
    following: Sequence[tuple[str, str]],
) -> list[str]:
    """The last lines that a run prints: its results, where it stopped if it did, and its files.

    Args:
        files: label -> place, as {"curve": "runs/a/reward.png"}.
        following: commands to go on with, and the purpose of each.
    """
    signal = summary.get("stopped_by")
    return [
        *([f"stopped at step {summary['steps']} by {signal}, --resume continues"] if signal else ()),
        *results,
        *(f"  {label:<8} {place}" for label, place in files.items()),
        *_following(following),
    ]


def _results(summary: Mapping[str, Any], reward_word: str) -> Iterable[str]:
    took = f"in {counted(summary['steps'], 'step')}, {duration(summary['train_wall_s'])}"
    before, after, gap = (summary[key] for key in ("heldout_before", "heldout_after", "logprob_max_abs_diff"))
    if after is not None:
        yield f"held-out {reward_word} {before:.2f} -> {after:.2f} {took}"
    elif not summary.get("stopped_by"):
        yield f"done {took}"
    if gap is not None:
        checksums = _CHECKSUMS[summary["swap_checksums_ok"]]
        swaps = f"{counted(summary['swaps'], 'swap')}, {checksums}"
        if lag := summary.get("largest_lag"):
            older = counted(lag, "update")
            yield f"answers are up to {older} old, and up to {gap:.1e} nats from the trained policy; {swaps}"
        else:
            yield f"trainer and engine agree to {gap:.1e} nats; {swaps}"
    if shares := summary.get("goodput"):
        largest = sorted(shares.items(), key=lambda entry: -entry[1])[:_MOST_CAUSES]
        causes = ", ".join(f"{cause.replace('_', ' ')} {share:.0%}" for cause, share in largest)
        yield f"engine time: {causes}"


def _totals(steps: Sequence[Record], prefix: str) -> dict[str, int]:
    """Sums of the metrics with a prefix over all steps; the last value of what is still in flight."""
    found: dict[str, int] = {}
    for name, value in (entry for record in steps for entry in record.metrics.items()):
        if name.startswith(prefix):
            key = name.removeprefix(prefix)
            found[key] = int(value) + (0 if key == "in_flight" else found.get(key, 0))
    return found


def _engine_shares(steps: Sequence[Record]) -> dict[str, float]:
    """What engines did with their time, as shares by cause over all steps; they sum to 1 unless empty."""
    spent_s: dict[str, float] = defaultdict(float)
    for record in steps:
        for name, share in record.metrics.items():
            if name.startswith("goodput/"):
                cause = name.removeprefix("goodput/")
                spent_s[cause] += share * record.metrics.get("perf/time_per_step", 1.0)
    total = sum(spent_s.values())
    return {cause: seconds / total for cause, seconds in spent_s.items()} if total else {}


def _following(commands: Sequence[tuple[str, str]]) -> Iterable[str]:
    width = max((len(command) for command, _ in commands), default=0)
    for i, (command, purpose) in enumerate(commands):
        yield f"{'next: ' if i == 0 else '      '}{command:<{width}}   {purpose}"


def _phases(records: Iterable[Record], rest_s: Mapping[str, float]) -> dict[str, float]:
    spent_s = defaultdict(float, rest_s)
    for record in records:
        for name, value in record.metrics.items():
            if name.startswith("timing_s/"):
                spent_s[name.removeprefix("timing_s/")] += value
    return dict(spent_s)


def _largest(records: Iterable[Record], name: str) -> float | None:
    """The largest value; None also if a value is not a number, which must not pass for a small one."""
    found = [r.metrics[name] for r in records if name in r.metrics]
    return max(found) if found and all(map(math.isfinite, found)) else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
