"""Optimizer steps against a bare Megatron-core loop, and against transformers with AdamW.

The bare loop runs over the same packed microbatches, with Megatron's schedule, its cross entropy, a plain PPO
loss and its optimizer step. The other, on one process, pads the same trajectories to the longest of an
optimizer step. Neither reports anything. Rounds alternate, and processor time is compared: other load on
the machine cancels.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from hybridrl.batch import Minibatch, RankBatch
from hybridrl.bench.base import Bench, Case, Metric
from hybridrl.bench.flops import achieved, peak_flops
from hybridrl.bench.ranks import on_ranks
from hybridrl.bench.trajectories import random_trajectories, rank_batch
from hybridrl.bench.workloads.step_loops import bare_loop, transformers_loop
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import ActorConfig, CriticConfig, TrainParallel
from hybridrl.models.spec import read
from hybridrl.trainer.setup import PolicySetup


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Qwen3 with random weights, and a batch for it."""

    tp: int
    hidden: int
    ffn: int
    layers: int
    vocab: int
    prompt: int
    """Tokens."""

    responses: tuple[int, int]
    """Tokens, from the shortest to one more than the longest."""

    trajectories: int
    minibatches: int
    flat: float = 0.0
    """Share of the trajectories whose advantage is 0, and which no pass computes."""

    samples: int = 1
    """Trajectories with the same prompt."""

    share_prompts: bool = False


QUICKSTART: Mapping[str, Any] = {
    **{"hidden": 128, "ffn": 256, "layers": 2, "vocab": 32, "prompt": 5, "responses": (1, 5)},
    **{"trajectories": 1024, "minibatches": 4},
}
MEDIUM: Mapping[str, Any] = {
    **{"hidden": 512, "ffn": 1408, "layers": 6, "vocab": 8192, "prompt": 64, "responses": (32, 193)},
    **{"trajectories": 16, "minibatches": 2},
}
SMOKE: Mapping[str, Any] = {
    **{"hidden": 32, "ffn": 64, "layers": 2, "vocab": 32, "prompt": 5, "responses": (1, 5)},
    **{"trajectories": 8, "minibatches": 2},
}

_METRICS = {
    "step_s": Metric("s", "all optimizer steps of the batch, by the clock", "lower"),
    "cpu_s": Metric("s", "processor time of rank 0 for the same", "lower"),
    "load_cpu_s": Metric("s", "processor time of rank 0 to load the batch, old log-probabilities included"),
    "bare_cpu_s": Metric("s", "processor time of a bare Megatron-core loop over the same microbatches"),
    "transformers_cpu_s": Metric("s", "processor time of transformers with AdamW on the same trajectories"),
    "over_bare": Metric(
        "x",
        "cpu_s over bare_cpu_s",
        "lower",
        gated=True,
        headline="Processor time of an optimizer step, over that of a bare Megatron-core loop",
    ),
    "over_transformers": Metric(
        "x",
        "cpu_s over transformers_cpu_s",
        "lower",
        gated=True,
        headline="Processor time of an optimizer step, over that of transformers with AdamW",
    ),
    "tokens_s": Metric("tokens/s/device", "tokens of the batch, prompts included, by step_s", "higher"),
    "tflops": Metric("TFLOP/s/device", "operations of the model, counted as for MFU, by step_s", "higher"),
    "mfu": Metric("share", "tflops over the peak of the device", "higher"),
}


def measure(case: Case) -> Mapping[str, list[float]]:
    shape = Shape(**case.config)
    with TemporaryDirectory() as folder:
        write_model(shape, Path(folder))
        result = Path(folder) / "result.json"
        on_ranks(shape.tp, _measure_rank, shape, Path(folder), case.warm_up, case.repeats, result)
        return json.loads(result.read_text())


def write_model(shape: Shape, folder: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=shape.hidden // 4,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def make_batch(shape: Shape) -> RankBatch:
    """Optimizer steps of one microbatch each."""
    block, advantage_N = random_trajectories(
        shape.trajectories,
        vocab_size=shape.vocab,
        prompt=shape.prompt,
        answers=shape.responses,
        samples=shape.samples,
    )
    trained_N = np.diff(block.start_N) - block.prompt_tokens_N
    minibatches = []
    for i, rows in enumerate(np.array_split(np.arange(shape.trajectories), shape.minibatches)):
        num_flat = round(shape.flat * len(rows))
        advantage_N[rows[:num_flat]] = 0.0
        computed = rows[min(num_flat, len(rows) - 1) :]  # one at least, as a run has it
        minibatches.append(
            Minibatch(
                i,
                ((tuple(computed.tolist()),),),
                int(trained_N[rows].sum()),
                len(rows),
                computed_tokens=int(trained_N[computed].sum()) if num_flat else None,
            )
        )
    return rank_batch(block, advantage_N, minibatches)


def _measure_rank(rank: int, shape: Shape, folder: Path, warm_up: int, repeats: int, result: Path) -> None:
    torch.set_num_threads(1)
    from hybridrl.trainer.policy import Policy

    setup = PolicySetup(
        rank=rank,
        rendezvous=f"file://{folder / 'rendezvous'}",
        parallel=TrainParallel(tp=shape.tp, dp=1),
        model=read(folder),
        model_folder=folder,
        actor=ActorConfig(share_prompts=shape.share_prompts),
        algorithm=AlgorithmConfig(guards="off"),  # rounds step again on one batch: its first ratio is not 1
        critic=CriticConfig(),
        temperature=1.0,
        max_response_tokens=shape.responses[1],
        seed=0,
        num_optimizer_steps=1,
        timeout_s=60.0,
    )
    policy, batch = Policy(setup), make_batch(shape)
    policy.load(batch)
    contestants: dict[str, Callable[[], object]] = {"ours": partial(step_all, policy, batch)}
    is_compared = not shape.flat and shape.samples == 1  # they would compute all, and each prompt again
    if is_compared:
        contestants["bare"] = bare_loop(policy, batch)
    if shape.tp == 1 and is_compared:
        contestants["transformers"] = transformers_loop(folder, batch)
    contestants["load"] = partial(policy.load, batch)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(warm_up + repeats):
        for name, contestant in contestants.items():
            spent[name].append(_seconds(contestant))
    if rank == 0:
        counted = {name: times[warm_up:] for name, times in spent.items()}
        result.write_text(json.dumps(_samples(counted, shape, setup, batch)))
    policy.close()


def step_all(policy: Any, batch: RankBatch) -> None:
    for minibatch in batch.minibatches:
        policy.step(minibatch.index)


def _seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Processor time of this process, and the time by the clock."""
    start, start_cpu = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - start_cpu, time.perf_counter() - start


def _samples(
    spent: Mapping[str, list[tuple[float, float]]], shape: Shape, setup: PolicySetup, batch: RankBatch
) -> dict[str, list[float]]:
    cpu_s = {name: [cpu for cpu, _ in times] for name, times in spent.items()}
    step_s = [wall for _, wall in spent["ours"]]
    lengths = np.diff(batch.blocks[0].start_N).tolist()
    found = {
        "step_s": step_s,
        "cpu_s": cpu_s["ours"],
        "load_cpu_s": cpu_s["load"],
        "tokens_s": [sum(lengths) / seconds / shape.tp for seconds in step_s],
    }
    if not (shape.flat or shape.share_prompts):  # all tokens are computed
        found["tflops"] = [achieved(setup.model, lengths, s) / shape.tp / 1e12 for s in step_s]
        if peak := peak_flops():
            found["mfu"] = [value / (peak / 1e12) for value in found["tflops"]]
    for name in ("bare", "transformers"):
        if name in cpu_s:
            found[f"{name}_cpu_s"] = cpu_s[name]
            found[f"over_{name}"] = [ours / other for ours, other in zip(cpu_s["ours"], cpu_s[name])]
    return found


def _prompts(share: float, samples: int, once: int) -> Case:
    """Trajectories of 256 tokens, a share of them prompt; with and without actor.share_prompts."""
    prompt = round(256 * share)
    shape = {**MEDIUM, "prompt": prompt, "responses": (256 - prompt, 257 - prompt), "minibatches": 1}
    sizes = Shape(tp=1, **shape, samples=samples, share_prompts=bool(once))
    name = f"prompts {share:.0%} x{samples}{', once' if once else ''}"
    return Case(name=name, config=asdict(sizes), repeats=3, readme=False)


BENCH = Bench(
    name="step",
    about="Optimizer steps of the trainer",
    metrics=_METRICS,
    cases=[
        Case(name=f"{name} tp{tp}", config=asdict(Shape(tp=tp, **sizes)), repeats=repeats)
        for name, sizes, repeats in (("quickstart", QUICKSTART, 20), ("medium", MEDIUM, 5))
        for tp in (1, 2)
    ]
    + [
        Case(
            name=f"{flat:.0%} flat",
            config=asdict(Shape(tp=1, flat=flat, **{**MEDIUM, "trajectories": 20})),
            repeats=5,
            readme=False,
        )
        for flat in (0.0, 0.2, 0.6, 1.0)
    ]
    + [_prompts(share, samples, once) for share in (0.1, 0.5, 0.9) for samples in (4, 16) for once in (0, 1)],
    smoke=[Case(name="smoke tp1", config=asdict(Shape(tp=1, **SMOKE)), repeats=2)],
    measure=measure,
)
