"""CPU seconds of trainer steps against a bare Megatron-core loop over the same packed microbatches.

The bare loop has Megatron's schedule, its cross entropy, a plain PPO loss and its optimizer step; it reports
nothing. Rounds of both alternate, and processor time is compared: other load on the machine cancels.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp

from benchmarks._report import arguments, publish
from hybridrl.batch import Minibatch, RankBatch, TokenBlock
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import ActorConfig, CriticConfig, TrainParallel
from hybridrl.models.spec import read
from hybridrl.trainer.setup import TrainerSetup

VOCAB, PROMPTS, SAMPLES, MINIBATCHES = 32, 64, 16, 4


def main() -> None:
    options = arguments(__doc__, tp=2, rounds=10)
    with TemporaryDirectory() as folder:
        write_model(Path(folder))
        result = Path(folder) / "result.pt"
        mp.spawn(measure, (Path(folder), options.tp, options.rounds, result), nprocs=options.tp)
        publish(torch.load(result), options.json)


def write_model(folder: Path) -> None:
    """A Qwen3 of the size of the quickstart's, with random weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def make_batch() -> RankBatch:
    """64 prompts of five tokens x 16 answers of one to four, as four optimizer steps of one microbatch."""
    draw, count = np.random.default_rng(0), PROMPTS * SAMPLES
    prompts = draw.integers(0, VOCAB, (count, 5)).tolist()
    answers = [draw.integers(0, VOCAB, draw.integers(1, 5)).tolist() for _ in range(count)]
    block = TokenBlock.from_answers(prompts, answers, [[-1.0] * len(a) for a in answers], version=0)
    advantage_N = draw.normal(size=count).astype(np.float32)
    minibatches = []
    for i, rows in enumerate(np.array_split(np.arange(count), MINIBATCHES)):
        num_tokens = sum(len(answers[n]) for n in rows)
        minibatches.append(Minibatch(i, ((tuple(rows.tolist()),),), num_tokens, len(rows)))
    zero_N = np.zeros(count, np.int64)
    return RankBatch(
        1, [block], zero_N, np.arange(count), zero_N, advantage_N, advantage_N, tuple(minibatches)
    )


def measure(rank: int, folder: Path, tp: int, rounds: int, result: Path) -> None:
    torch.set_num_threads(1)
    from hybridrl.trainer.megatron.policy import MegatronPolicy

    setup = TrainerSetup(
        rank=rank,
        rendezvous=f"file://{folder / 'rendezvous'}",
        parallel=TrainParallel(tp=tp, dp=1),
        model=read(folder),
        model_folder=folder,
        actor=ActorConfig(),
        algorithm=AlgorithmConfig(guards="off"),  # rounds step again on one batch: its first ratio is not 1
        critic=CriticConfig(),
        temperature=1.0,
        max_response_tokens=4,
        seed=0,
        num_optimizer_steps=1,
        timeout_s=60.0,
    )
    policy, batch = MegatronPolicy(setup), make_batch()
    policy.load(batch)
    contestants = {"bare": bare_loop(policy, batch), "ours": partial(step_all, policy, batch)}
    spent: dict[str, list[float]] = {name: [] for name in (*contestants, "load")}
    for _ in range(rounds + 1):  # the first is warm-up
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
    ratios = [ours / bare for ours, bare in zip(spent["ours"], spent["bare"])]
    return {
        "trajectories": len(batch.row_N),
        "tokens": int(batch.blocks[0].start_N[-1]),
        "optimizer_steps": len(batch.minibatches),
        "tp": tp,
        "rounds": len(ratios),
        "median_cpu_s_of_rank_0": {name: round(median(times), 4) for name, times in spent.items()},
        "ours_over_bare": round(median(ratios), 3),
    }


def bare_loop(policy: Any, batch: RankBatch) -> Callable[[], None]:
    """Megatron and nothing else, on the model, optimizer and microbatches of a policy."""
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    from hybridrl.hosts import cpu
    from hybridrl.trainer.megatron.model import forward, policy_model

    loaded, network, optimizer = policy._loaded, policy._model, policy._optimizer.megatron
    steps = [loaded.microbatches([m])[0] for m in batch.minibatches]
    old = [loaded.columns["old_logp"][m.trained_R] for m in steps]
    advantage = [loaded.columns["advantage"][m.trained_R] for m in steps]

    def ppo(i: int, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = policy_model(network).logits(hidden)
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
