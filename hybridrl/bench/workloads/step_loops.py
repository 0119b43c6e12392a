"""The same optimizer steps without hybridrl: Megatron-core alone, and transformers with AdamW."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybridrl.batch import RankBatch


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
