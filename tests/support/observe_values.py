"""Small batches, reports and records for the tests of observation."""

from collections.abc import Sequence

import numpy as np

from hybridrl.batch import Batch
from hybridrl.config.schema import Config
from hybridrl.observe.record import Kind, Record
from hybridrl.types import Finish, Group, Prompt, StepReport, SwapReport, Trajectory

SWAP = SwapReport(
    version=1, time_s=0.008, num_tensors=26, written_bytes=1800, staging_bytes=64, checksums_equal=True
)


def trajectory(
    reward: float, *, tokens: int = 2, finish: Finish = "stop", text: str | None = None, **parts: float
) -> Trajectory:
    """An answer to a prompt of 3 tokens, all of whose tokens are trained on."""
    return Trajectory(0, 3, tokens, tokens, finish, 0, reward, parts, text)


def batch(groups: Sequence[Sequence[Trajectory]], *, step: int = 1, question: str = "7+5=") -> Batch:
    """One group per sequence; advantage is the reward less the mean of the batch."""
    made = [
        Group(Prompt(f"train/{i}", (1, 2, 3), {"prompt": question}), list(g), "block")
        for i, g in enumerate(groups)
    ]
    packed = Batch.pack(step, made)
    packed.advantage_N = packed.reward_N - packed.reward_N.mean(dtype=np.float32)
    return packed


def report(step: int = 1, **metrics: float) -> StepReport:
    """Metrics are given without "actor/"."""
    named = {f"actor/{name}": value for name, value in metrics.items()}
    return StepReport(version=step, loss=0.25, grad_norm=0.5, lr=5e-4, metrics=named)


def record(step: int, *, kind: Kind = "step", time: float | None = None, **metrics: float) -> Record:
    """Names are given with "__" for "/"; a step takes a second."""
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    if kind == "step":
        named["training/global_step"] = float(step)
    return Record(
        kind=kind,
        step=step,
        time=time if time is not None else float(step),
        wall_s=float(step),
        metrics=named,
    )


def heldout(step: int, reward: float) -> Record:
    return record(step, kind="evaluation", **{"val-core/digits/reward/mean_at_1": reward})


def config(folder: object, **run: object) -> Config:
    """A run named "a" of 4 steps in `folder`."""
    sections = {"model": "m", "data": {"train": "d.jsonl"}, "reward": "exact_match", "observe": {"sinks": []}}
    return Config.model_validate({**sections, "run": {"name": "a", "folder": str(folder), "steps": 4, **run}})
