"""Peak memory of training steps on CPU ranks, counted allocation by allocation, against what a plan predicts.

Torch's profiler reports every allocation of its CPU allocator: their running sum is exact, temporary buffers
of operators included. Each shape takes two optimizer steps on full microbatches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks._report import arguments, publish
from hybridrl.batch import Minibatch, RankBatch, TokenBlock
from hybridrl.bench.ranks import on_ranks
from hybridrl.config.schema import Config
from hybridrl.estimate import memory
from hybridrl.estimate.setting import Setting
from hybridrl.models.spec import read
from hybridrl.trainer.setup import PolicySetup

RESULT = {"shapes": "by shape: measured and predicted peak of every rank, and the largest relative error"}

PROMPT, RESPONSE = 32, 96
LENGTH = PROMPT + RESPONSE


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model, a cut and an algorithm."""

    hidden: int = 256
    ffn: int = 768
    layers: int = 4
    heads: tuple[int, int] = (8, 2)
    """Of queries; of keys and values."""

    head_dim: int = 32
    vocab: int = 2048
    architecture: str = "Qwen3"
    tied: bool = False
    tokens: int = 4096
    """Of a microbatch."""

    microbatches: int = 1
    """Of an optimizer step, on each data-parallel rank."""

    parallel: dict[str, int] = field(default_factory=dict)
    recompute: str = "none"
    algorithm: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] | None = None

    @property
    def title(self) -> str:
        cut = " ".join(f"{axis}{size}" for axis, size in self.parallel.items()) or "1 rank"
        beside = self.algorithm.get("estimator", "") or ("reference" if self.algorithm.get("kl") else "")
        sizes = f"{self.architecture} {self.layers} x {self.hidden}, {self.vocab:,} entries"
        adapters = f"adapters of {self.lora['rank']}" if self.lora else ""
        told = f"{sizes}, {cut}, {self.tokens} tokens, recompute {self.recompute} {beside} {adapters}"
        return " ".join(told.split())

    @property
    def num_ranks(self) -> int:
        return int(np.prod(list(self.parallel.values()), dtype=int))


SHAPES = (
    Shape(),
    Shape(tokens=8192, layers=2),
    Shape(hidden=512, ffn=1408, layers=6, tokens=2048),
    Shape(recompute="full", tokens=8192),
    Shape(recompute="selective"),
    Shape(vocab=16384, tokens=4096, layers=2),
    Shape(architecture="Llama", tied=True, heads=(4, 4), head_dim=64),
    Shape(architecture="Qwen2", vocab=4096, layers=8),
    Shape(hidden=768, ffn=2048, layers=4, tokens=1024, algorithm={"kl": {"coefficient": 0.01}}),
    Shape(algorithm={"estimator": "gae"}),
    Shape(parallel={"tp": 2}, tokens=8192),
    Shape(parallel={"tp": 2}, recompute="full", hidden=512, ffn=1536),
    Shape(parallel={"pp": 2}, layers=6, microbatches=3),
    Shape(parallel={"dp": 2}, hidden=512, ffn=1408),
    Shape(parallel={"tp": 2}, hidden=512, heads=(8, 4), algorithm={"kl": {"coefficient": 0.01}}),
    Shape(parallel={"pp": 2}, layers=4, microbatches=1, recompute="full", tokens=8192),
    Shape(hidden=512, ffn=1408, tokens=2048, algorithm={"kl": {"coefficient": 0.01}}, lora={"rank": 16}),
)


SMOKE = Shape(hidden=64, ffn=128, layers=2, heads=(2, 1), vocab=256, tokens=512)
"""For --smoke alone: of a model so small a plan predicts little."""


def main() -> None:
    options = arguments(__doc__, smoke={}, only="")
    shapes = [SHAPES[int(i)] for i in options.only.split(",")] if options.only else list(SHAPES)
    if options.smoke:
        shapes = [SMOKE]
    publish({"shapes": compare(shapes)}, options.json)


def compare(shapes: Sequence[Shape]) -> list[dict[str, Any]]:
    """Measured and predicted bytes of the fullest rank's training step, and of every rank."""
    rows = []
    for shape, ranks in zip(shapes, measure(shapes), strict=True):
        setting = setting_of(shape)
        row: dict[str, Any] = {"shape": shape.title, "ranks": []}
        for rank, peaks in enumerate(ranks):
            stage = rank * shape.parallel.get("pp", 1) // shape.num_ranks
            predicted = {"step": memory.training(setting, stage), "load": memory.logprobs(setting, stage)}
            row["ranks"].append(
                {
                    name: {
                        "measured_mb": round(peaks[name] / 1e6, 2),
                        "predicted_mb": round(predicted[name].peak / 1e6, 2),
                        "error": round(predicted[name].peak / peaks[name] - 1, 4),
                    }
                    for name in predicted
                }
            )
        row["error"] = max((r["step"]["error"] for r in row["ranks"]), key=abs)
        print(f"{row['error']:+.3f}  {shape.title}", flush=True)
        rows.append(row)
    return rows


def measure(shapes: Sequence[Shape]) -> Iterator[list[dict[str, int]]]:
    """Bytes at the fullest moment of "load" and of "step", by shape and rank."""
    for shape in shapes:
        with TemporaryDirectory() as name:
            folder = Path(name)
            write_model(shape, folder / "model")
            on_ranks(shape.num_ranks, _rank, shape, folder)
            yield [torch.load(folder / f"{rank}.pt") for rank in range(shape.num_ranks)]


def config_of(shape: Shape, folder: str = "model") -> Config:
    return Config.model_validate(
        {
            "model": folder,
            "data": {"train": "none.jsonl"},
            "reward": "exact_match",
            "run": {"name": "memory"},
            "algorithm": {
                "guards": "off",
                "samples_per_prompt": 4,
                **{k: {"name": v} if k == "estimator" else v for k, v in shape.algorithm.items()},
            },
            "batch": {"prompts_per_step": _rows(shape) * 2 // 4, "minibatch_prompts": _rows(shape) // 4},
            "actor": {
                "parallel": shape.parallel,
                "microbatch_tokens": shape.tokens,
                "recompute": shape.recompute,
                "lora": shape.lora,
            },
            "rollout": {"max_prompt_tokens": PROMPT, "max_response_tokens": RESPONSE},
        }
    )


def setting_of(shape: Shape) -> Setting:
    with TemporaryDirectory() as name:
        folder = Path(name) / "model"
        hf_config(shape).save_pretrained(folder)
        cfg = config_of(shape)
        model = read(folder)
    # Every trajectory of the batch is as long as it may be.
    return Setting.of(cfg, model, None, mean_response=RESPONSE + PROMPT / 2)


def hf_config(shape: Shape) -> Any:
    import transformers

    return getattr(transformers, f"{shape.architecture}Config")(
        architectures=[f"{shape.architecture}ForCausalLM"],
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads[0],
        num_key_value_heads=shape.heads[1],
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
    )


def write_model(shape: Shape, folder: Path) -> None:
    import transformers

    torch.manual_seed(0)
    getattr(transformers, f"{shape.architecture}ForCausalLM")(hf_config(shape)).save_pretrained(folder)


def make_batch(shape: Shape) -> RankBatch:
    """Two minibatches; every microbatch is full."""
    draw, rows = np.random.default_rng(0), _rows(shape)
    count = 2 * rows
    # A trajectory's last token is no input, so one more makes a full row.
    tokens = draw.integers(0, shape.vocab, (count, LENGTH + 1)).tolist()
    block = TokenBlock.from_answers(
        [row[:PROMPT] for row in tokens],
        [row[PROMPT:] for row in tokens],
        [[-1.0] * (RESPONSE + 1)] * count,
        version=0,
    )
    scalar_N, zero_N = draw.normal(size=count).astype(np.float32), np.zeros(count, np.int64)
    advantage_N = None if shape.algorithm.get("estimator") == "gae" else scalar_N
    return RankBatch(
        1,
        (block,),
        zero_N,
        np.arange(count),
        np.arange(count) // 4,
        scalar_N,
        advantage_N,
        tuple(_minibatch(shape, i, part) for i, part in enumerate(np.split(np.arange(count), 2))),
    )


def _minibatch(shape: Shape, index: int, rows: np.ndarray) -> Minibatch:
    dp = shape.parallel.get("dp", 1)
    parts = [
        tuple(tuple(m.tolist()) for m in np.split(own, shape.microbatches)) for own in np.split(rows, dp)
    ]
    return Minibatch(index, tuple(parts), len(rows) * (RESPONSE + 1), len(rows))


def _rows(shape: Shape) -> int:
    """Trajectories of a minibatch."""
    return shape.tokens // LENGTH * shape.microbatches * shape.parallel.get("dp", 1)


def _rank(rank: int, shape: Shape, folder: Path) -> None:
    torch.set_num_threads(1)
    from torch.profiler import ProfilerActivity, profile, record_function

    from hybridrl.trainer.policy import Policy

    setup, batch = _setup(rank, shape, folder), make_batch(shape)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        with record_function(_PHASE + "build"):
            policy = Policy(setup)
        with record_function(_PHASE + "load"):
            policy.load(batch)
        with record_function(_PHASE + "step"):
            policy.step(0)
            policy.step(1)
    torch.save(peaks(profiled), folder / f"{rank}.pt")
    policy.close()


def _setup(rank: int, shape: Shape, folder: Path) -> PolicySetup:
    cfg = config_of(shape)
    return PolicySetup(
        rank=rank,
        rendezvous=f"file://{folder / 'rendezvous'}",
        parallel=cfg.actor.parallel.model_copy(update={"dp": shape.parallel.get("dp", 1)}),
        model=read(folder / "model"),
        model_folder=folder / "model",
        actor=cfg.actor,
        algorithm=cfg.algorithm,
        critic=cfg.critic,
        temperature=1.0,
        max_response_tokens=RESPONSE + 1,
        seed=0,
        num_optimizer_steps=2,
        timeout_s=120.0,
    )


def peaks(profiled: Any) -> dict[str, int]:
    """Most bytes alive during each phase, of those allocated since the profile began."""
    events = list(_events(profiled.profiler.kineto_results.experimental_event_tree()))
    phases = [e for e in events if e.name.startswith(_PHASE)]
    allocations = sorted((e for e in events if e.tag.name == "Allocation"), key=lambda e: e.start_time_ns)
    alive: dict[int, int] = {}
    most = dict.fromkeys((e.name.removeprefix(_PHASE) for e in phases), 0)
    total = 0
    for event in allocations:
        fields = event.typed[1]
        if fields.alloc_size > 0:
            alive[fields.ptr] = fields.alloc_size
            total += fields.alloc_size
        else:
            total -= alive.pop(fields.ptr, 0)
        for phase in phases:
            if phase.start_time_ns <= event.start_time_ns <= phase.end_time_ns:
                name = phase.name.removeprefix(_PHASE)
                most[name] = max(most[name], total)
    return most


def _events(roots: Sequence[Any]) -> Iterator[Any]:
    stack = list(roots)
    while stack:
        event = stack.pop()
        yield event
        stack += event.children


_PHASE = "phase: "

if __name__ == "__main__":
    main()
