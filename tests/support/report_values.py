"""Run folders for the tests of reports, comparisons and advice."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Value = float | Callable[[int], float]
"""The value of a metric, or a function of the step."""

PLAIN: Mapping[str, Value] = {
    "critic/score/mean": lambda step: step / (step + 20),
    "actor/entropy": 0.8,
    "rollout/zero_std": 0.2,
    "timing_s/step": 1.0,
    "timing_s/gen": 0.6,
    "timing_s/update_actor": 0.3,
    "sync/time_s": 0.01,
    "sync/written_bytes": 1e6,
    "sync/sent_bytes": 0.0,
    "sync/checksum_ok": 1.0,
    "sync/replays": 0.0,
    "goodput/with_gradient": 0.8,
    "goodput/idle": 0.2,
    "perf/time_per_step": 1.0,
}

CONFIG: Mapping[str, object] = {
    "run.name": "a",
    "run.seed": 0,
    "run.steps": 20,
    "algorithm.estimator.name": "grpo",
}


def run_folder(
    folder: Path,
    *,
    steps: int = 20,
    metrics: Mapping[str, Value] | None = None,
    heldout: Sequence[float] = (0.1, 0.5),
    rollouts: Sequence[Mapping[str, Any]] = (),
    **config: object,
) -> Path:
    """The folder of a run as `steps` steps leave it.

    Args:
        metrics: in addition to PLAIN.
        heldout: held-out rewards, over the whole run.
        config: in addition to CONFIG, with "__" for ".".
    """
    folder.mkdir(parents=True)
    named = {**PLAIN, **(metrics or {})}
    lines = [_step(step, named) for step in range(1, steps + 1)]
    lines += [_evaluation(i * steps // max(1, len(heldout) - 1), reward) for i, reward in enumerate(heldout)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "rollouts.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rollouts))
    keys = {**CONFIG} | {name.replace("__", "."): value for name, value in config.items()}
    (folder / "resolved.yaml").write_text(_yaml(keys))
    return folder


def rollout(step: int = 1, **changes: Any) -> dict[str, Any]:
    """A line of rollouts.jsonl."""
    return {
        "step": step,
        "why": ["best"],
        "uid": "train/1",
        "reward": 1.0,
        "parts": {},
        "advantage": 0.5,
        "finish": "stop",
        "version": 0,
        "turns": 1,
        "prompt": "7+5=",
        "gold": "2",
        "num_tokens": 2,
        "left_out_after": None,
        "tokens": [["7+5=", 0, None, None], ["2", 1, 0.5, -1e-6]],
        **changes,
    }


def _step(step: int, metrics: Mapping[str, Value]) -> dict[str, Any]:
    values = {name: value(step) if callable(value) else value for name, value in metrics.items()}
    return {"kind": "step", "step": step, "time": float(step), "wall_s": float(step), **values}


def _evaluation(step: int, reward: float) -> dict[str, Any]:
    named = {"val-core/digits/reward/mean_at_1": reward}
    return {"kind": "evaluation", "step": step, "time": float(step), "wall_s": float(step), **named}


def _yaml(keys: Mapping[str, object]) -> str:
    """As resolved.yaml, for keys of at most three parts that are given in order."""
    lines, above = [], ()
    for dotted, value in keys.items():
        *sections, name = dotted.split(".")
        for depth, section in enumerate(sections):
            if tuple(sections[: depth + 1]) != above[: depth + 1]:
                lines.append(f"{'  ' * depth}{section}:")
        above = tuple(sections)
        lines.append(f"{'  ' * len(sections)}{name}: {value}  # mine.yaml:3")
    return "# hybridrl 0.1.0, from mine.yaml\n" + "\n".join(lines) + "\n"
