"""CPU seconds of trainer steps against a bare Megatron-core loop, and against transformers with AdamW.

The bare loop runs over the same packed microbatches, with Megatron's schedule, its cross entropy, a plain PPO
loss and its optimizer step. The other, on one process, pads the same trajectories to the longest of an
optimizer step. Neither reports anything. Rounds alternate, and processor time is compared: other load on
the machine cancels.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks._ranks import on_ranks
from benchmarks._report import arguments, publish
from benchmarks._steps import chosen, random_trajectories, rank_batch
from hybridrl.batch import Minibatch, RankBatch
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import ActorConfig, CriticConfig, TrainParallel
from hybridrl.models.spec import read
from hybridrl.trainer.setup import PolicySetup

RESULT = {
    "runs": "by shape and tensor-parallel size: processor seconds of every contestant, and ratios to ours"
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Qwen3 with random weights, and a batch for it."""

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
    rounds: int


SHAPES = {
    "quickstart": Shape(
        hidden=128,
        ffn=256,
        layers=2,
        vocab=32,
        prompt=5,
        responses=(1, 5),
        trajectories=1024,
        minibatches=4,
        rounds=20,
    ),
    "medium": Shape(
        hidden=512,
        ffn=1408,
        layers=6,
        vocab=8192,
        prompt=64,
        responses=(32, 193),
        trajectories=16,
        minibatches=2,
        rounds=5,
    ),
    "smoke": Shape(
        hidden=32,
        ffn=64,
        layers=2,
        vocab=32,
        prompt=5,
        responses=(1, 5),
        trajectories=8,
        minibatches=2,
        rounds=2,
    ),
}


def main() -> None:
    options = arguments(__doc__, smoke={"shapes": "smoke"}, shapes="quickstart,medium")
    names = chosen(options.shapes, SHAPES)
    publish({"runs": [run(name, tp) for name in names for tp in (1, 2)]}, options.json)


def run(name: str, tp: int) -> dict[str, object]:
    with TemporaryDirectory() as folder:
        write_model(SHAPES[name], Path(folder))
        result = Path(folder) / "result.pt"
        on_ranks(tp, measure, SHAPES[name], Path(folder), tp, result)
        row = {"shape": name, **torch.load(result)}
    print(row, flush=True)
    return row


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
        shape.trajectories, vocab_size=shape.vocab, prompt=shape.prompt, answers=shape.responses
    )
    trained_N = np.diff(block.start_N) - block.prompt_tokens_N
    split = np.array_split(np.arange(shape.trajectories), shape.minibatches)
    minibatches = [
        Minibatch(i, ((tuple(rows.tolist()),),), int(trained_N[rows].sum()), len(rows))
        for i, rows in enumerate(split)
    ]
    return rank_batch(block, advantage_N, minibatches)


def measure(rank: int, shape: Shape, folder: Path, tp: int, result: Path) -> None:
    torch.set_num_threads(1)
    from hybridrl.trainer.policy import Policy

    setup = PolicySetup(
        rank=rank,
        rendezvous=f"file://{folder / 'rendezvous'}",
        parallel=TrainParallel(tp=tp, dp=1),
        model=read(folder),
        model_folder=folder,
        actor=ActorConfig(),
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
    contestants = {"bare": bare_loop(policy, batch), "ours": partial(step_all, policy, batch)}
    if tp == 1:
        contestants["transformers"] = transformers_loop(folder, batch)
    spent: dict[str, list[float]] = {name: [] for name in (*contestants, "load")}
    for _ in range(shape.rounds + 1):  # the first is warm-up
        for name, contestant in contestants.items():
            spent[name].append(processor_time(contestant))
        spent["load"].append(processor_time(partial(policy.load, batch)))
    if rank == 0:
        torch.save(summary({name: times[1:] for name, times in spent.items()}, batch, tp), result)
    policy.close()


def step_all(policy: Any, batch: RankBatch) -> None:
    for minibatch in batch.minibatches:
        policy.step(minibatch.index)


def processor_time(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def summary(spent: dict[str, list[float]], batch: RankBatch, tp: int) -> dict[str, object]:
    ratios = {
        f"ours_over_{name}": round(median(ours / other for ours, other in zip(spent["ours"], spent[name])), 3)
        for name in spent
        if name not in ("ours", "load")
    }
    return {
        "trajectories": len(batch.row_N),
        "tokens": int(batch.blocks[0].start_N[-1]),
        "optimizer_steps": len(batch.minibatches),
        "tp": tp,
        "rounds": len(spent["ours"]),
        "median_cpu_s_of_rank_0": {name: round(median(times), 4) for name, times in spent.items()},
        **ratios,
    }


def transformers_loop(folder: Path, batch: RankBatch) -> Callable[[], None]:
    """The same trajectories, padded, in plain torch."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0)
    steps = [padded(batch, minibatch.rows[0][0]) for minibatch in batch.minibatches]

    def loop() -> None:
        for token_NL, mask_NL, advantage_N in steps:
            logits = model(token_NL[:, :-1]).logits.log_softmax(-1)
            logp_NL = logits.gather(-1, token_NL[:, 1:, None]).squeeze(-1)
            ratio_NL = (logp_NL + 1.0).exp()
            loss_NL = torch.maximum(
                -ratio_NL * advantage_N[:, None], -ratio_NL.clamp(0.8, 1.2) * advantage_N[:, None]
            )
            ((loss_NL * mask_NL).sum() / mask_NL.sum()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return loop


def padded(batch: RankBatch, rows: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """token_NL, mask_NL of those that are predicted and trained, advantage_N."""
    block, advantage_N = batch.blocks[0], batch.advantage_N
    assert advantage_N is not None  # make_batch gives one to every trajectory
    places = [block.row(row) for row in rows]
    longest = max(place.stop - place.start for place in places)
    token_NL = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask_NL = torch.zeros(len(rows), longest - 1)
    for i, place in enumerate(places):
        length = place.stop - place.start
        token_NL[i, :length] = torch.from_numpy(block.token_T[place])
        mask_NL[i, : length - 1] = torch.from_numpy(block.loss_mask_T[place][1:].astype(np.float32))
    return token_NL, mask_NL, torch.from_numpy(advantage_N[list(rows)])


def bare_loop(policy: Any, batch: RankBatch) -> Callable[[], None]:
    """Megatron and nothing else, on the model, optimizer and microbatches of a policy."""
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    from hybridrl.hosts import cpu
    from hybridrl.trainer.megatron.model import forward, policy_model

    loaded, [network], optimizer = policy._loaded, policy._model.stage, policy._optimizer.megatron
    steps = [loaded.microbatches([m])[0] for m in batch.minibatches]
    old = [loaded.columns["old_logp"][m.trained_R] for m in steps]
    advantage = [loaded.columns["advantage"][m.trained_R] for m in steps]

    def ppo(i: int, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = policy_model([network]).logits(hidden)
        logp = -vocab_parallel_cross_entropy(logits[None].contiguous(), steps[i].target_O[None])[0]
        ratio = (logp - old[i]).exp()
        loss = torch.maximum(-ratio * advantage[i], -ratio.clamp(0.8, 1.2) * advantage[i]).mean()
        return loss, torch.zeros((), dtype=torch.int), loss.detach().clone()

    def forward_step(feed: Any, model: torch.nn.Module) -> tuple[torch.Tensor, Callable]:
        i = next(feed)
        return forward(model, steps[i]), partial(ppo, i)

    def loop() -> None:
        network.config.finalize_model_grads_func = lambda m, n=None, **groups: finalize_model_grads(
            m, **groups
        )
        with cpu.scope():
            for i in range(len(steps)):
                network.zero_grad_buffer()
                optimizer.zero_grad()
                get_forward_backward_func()(
                    forward_step_func=forward_step,
                    data_iterator=iter([i]),
                    model=[network],
                    num_microbatches=1,
                    seq_length=1,
                    micro_batch_size=1,
                )
                optimizer.step()

    return loop


if __name__ == "__main__":
    main()
