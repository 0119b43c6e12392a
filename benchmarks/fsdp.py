"""FSDP: seconds of its optimizer steps beside those of others, and the bytes of its weight swaps.

Steps are of the same trajectories, model and optimizer. FSDP and Megatron run on two data-parallel ranks that
each take half of the trajectories, packed; transformers with AdamW pads all of them in one process.
Contestants take turns, in processes of their own. Swaps are plans on real shapes, without a tensor, beside
their lower bound.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks._report import arguments, publish
from hybridrl.batch import Minibatch, RankBatch
from hybridrl.bench.ranks import on_ranks
from hybridrl.bench.trajectories import chosen, random_trajectories, rank_batch
from hybridrl.bench.workloads.step_loops import transformers_loop
from hybridrl.bench.workloads.swap_plans import planned
from hybridrl.bench.workloads.swap_shapes import FSDP_WORKLOADS
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import ActorConfig, CriticConfig, TrainParallel
from hybridrl.models.spec import read
from hybridrl.trainer.setup import PolicySetup

RESULT = {
    "swaps": "by workload: what a plan moves, beside its lower bounds",
    "steps": "by model: best and median wall and processor seconds of rank 0 for one optimizer step of "
    "every contestant, seconds of the parts of a step, and ratios of FSDP to the others, of the best walls "
    "and of the median processor times",
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama with random weights and a tied output layer, and trajectories for it."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    lengths: tuple[int, int]
    """Tokens of an answer, from the shortest to one more than the longest."""

    trajectories: int
    steps: int
    """Optimizer steps that are measured in a turn; each takes all trajectories."""

    turns: int


SHAPES = {
    "smollm2": Shape(
        hidden=576,
        ffn=1536,
        layers=30,
        heads=9,
        kv_heads=3,
        vocab=49152,
        lengths=(80, 121),
        trajectories=8,
        steps=2,
        turns=2,
    ),
    "tiny": Shape(
        hidden=128,
        ffn=384,
        layers=2,
        heads=4,
        kv_heads=2,
        vocab=64,
        lengths=(2, 10),
        trajectories=256,
        steps=10,
        turns=3,
    ),
    "smoke": Shape(
        hidden=32,
        ffn=64,
        layers=2,
        heads=4,
        kv_heads=2,
        vocab=32,
        lengths=(2, 5),
        trajectories=8,
        steps=1,
        turns=1,
    ),
}
"""smollm2 has the sizes of SmolLM2-135M."""

PROMPT = 5

ACTORS = {
    "fsdp": ActorConfig(backend="fsdp"),
    "fsdp, gather: once": ActorConfig(backend="fsdp", gather="once"),
    "megatron": ActorConfig(backend="megatron"),
}
CONTESTANTS = {**dict.fromkeys(ACTORS, 2), "transformers": 1}
"""Contestant -> its number of processes."""

COLLECTIVES = ("all_gather_single", "reduce_scatter_single", "all_reduce")
"""Functions of torch.distributed that FSDP and our optimizer call."""


def main() -> None:
    options = arguments(
        __doc__, smoke={"shapes": "smoke", "swaps": 1}, shapes="tiny,smollm2", turns=0, swaps=4
    )
    names = chosen(options.shapes, SHAPES)
    swaps = [planned(workload) for workload in FSDP_WORKLOADS[: options.swaps]]
    steps = [run(name, options.turns) for name in names]
    publish({"swaps": swaps, "steps": steps}, options.json)


def run(name: str, turns: int = 0) -> dict[str, Any]:
    shape, found = SHAPES[name], {contestant: [] for contestant in CONTESTANTS}
    with TemporaryDirectory() as folder:
        write_model(shape, Path(folder))
        for turn in range(turns or shape.turns):
            for number, (contestant, num_ranks) in enumerate(CONTESTANTS.items()):
                result = Path(folder) / f"{turn}.{number}.pt"
                on_ranks(num_ranks, measure, contestant, shape, Path(folder), result)
                found[contestant].append(torch.load(result))
    row = {"shape": name, **summary(found)}
    print(row, flush=True)
    return row


def write_model(shape: Shape, folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_batch(shape: Shape, num_ranks: int) -> RankBatch:
    """Optimizer steps of all trajectories, as one microbatch on each rank."""
    count = shape.trajectories
    block, advantage_N = random_trajectories(
        count, vocab_size=shape.vocab, prompt=PROMPT, answers=shape.lengths
    )
    rows = tuple((tuple(part.tolist()),) for part in np.array_split(np.arange(count), num_ranks))
    num_tokens = int(block.loss_mask_T.sum())
    return rank_batch(
        block, advantage_N, [Minibatch(i, rows, num_tokens, count) for i in range(shape.steps + 1)]
    )


def measure(rank: int, contestant: str, shape: Shape, folder: Path, result: Path) -> None:
    """Time all steps but the first, which warms up."""
    torch.set_num_threads(1)
    batch = make_batch(shape, CONTESTANTS[contestant])
    if contestant == "transformers":
        loop = transformers_loop(folder, batch_of_one(batch))
        times = [timed(loop) for _ in batch.minibatches]
        torch.save({"times": times[1:], "parts": {}}, result)
        return
    policy = make_policy(rank, contestant, shape, folder, result.with_suffix(".rendezvous"))
    policy.load(batch)
    times, parts = [], []
    for minibatch in batch.minibatches:
        with parts_of(policy) as spent:
            times.append(timed(partial(policy.step, minibatch.index)))
        parts.append(dict(spent))
    if rank == 0:
        torch.save({"times": times[1:], "parts": parts[-1]}, result)
    policy.close()


def batch_of_one(batch: RankBatch) -> RankBatch:
    """The batch with one optimizer step."""
    return replace(batch, minibatches=batch.minibatches[:1])


def make_policy(rank: int, contestant: str, shape: Shape, folder: Path, rendezvous: Path) -> Any:
    from hybridrl.trainer.policy import Policy

    setup = PolicySetup(
        rank=rank,
        rendezvous=f"file://{rendezvous}",
        parallel=TrainParallel(dp=CONTESTANTS[contestant]),
        model=read(folder),
        model_folder=folder,
        actor=ACTORS[contestant],
        algorithm=AlgorithmConfig(guards="off"),  # later steps of a batch: their first ratio is not 1
        critic=CriticConfig(),
        temperature=1.0,
        max_response_tokens=shape.lengths[1],
        seed=0,
        num_optimizer_steps=shape.steps + 1,
        timeout_s=120.0,
    )
    return Policy(setup)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """(wall, processor) seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


@contextlib.contextmanager
def parts_of(policy: Any) -> Iterator[dict[str, float]]:
    """Wall seconds of the calls of a step, by what they are for; collectives include waiting for others."""
    spent: dict[str, float] = {}
    optimizer = policy._optimizer
    with contextlib.ExitStack() as stack:
        stack.enter_context(measured(optimizer, "gradient_norm", "norm", spent))
        stack.enter_context(measured(optimizer, "step", "optimizer", spent))
        for name in COLLECTIVES:
            stack.enter_context(measured(dist, name, name, spent))
        yield spent


@contextlib.contextmanager
def measured(owner: Any, name: str, part: str, spent: dict[str, float]) -> Iterator[None]:
    original = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args, **options)
        finally:
            spent[part] = spent.get(part, 0.0) + time.perf_counter() - start

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, original)


def summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    times = {name: [one for turn in turns for one in turn["times"]] for name, turns in found.items()}
    best = {name: min(wall for wall, _ in each) for name, each in times.items()}
    processor = {name: median(spent for _, spent in each) for name, each in times.items()}
    return {
        "best_wall_s": {name: round(value, 4) for name, value in best.items()},
        "median_wall_s": {name: round(median(w for w, _ in each), 4) for name, each in times.items()},
        "median_cpu_s_of_rank_0": {name: round(value, 4) for name, value in processor.items()},
        "parts_wall_s": {
            name: {part: round(value, 4) for part, value in turns[-1]["parts"].items()}
            for name, turns in found.items()
        },
        "over": {
            f"{ours} / {other}": {
                "wall": round(best[ours] / best[other], 3),
                "cpu": round(processor[ours] / processor[other], 3),
            }
            for ours in ACTORS
            for other in ("megatron", "transformers")
            if ours != other
        },
    }


if __name__ == "__main__":
    main()
