"""Training on what an environment wrote (ECHO), on trainer ranks and by torch and transformers alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trainer_scenarios as scenarios
import trainer_values as values

from hybridrl.batch import TokenBlock
from hybridrl.config.schema import AlgorithmConfig

COEFFICIENT = 0.5
ROWS = 12


def watched(block: TokenBlock) -> TokenBlock:
    """The block with a column observed: every other token of a row, if it is not trained on."""
    observed_T = np.zeros(len(block.token_T), bool)
    for row in range(len(block)):
        where = block.row(row)
        observed_T[where.start + 1 : where.stop : 2] = True
    return replace(block, columns={**block.columns, "observed": observed_T & ~block.loss_mask_T})


def algorithm(over: str) -> AlgorithmConfig:
    return AlgorithmConfig.model_validate(
        {"loss": "reinforce", "observations": {"coefficient": COEFFICIENT, "over": over}, "guards": "off"}
    )


def steps(
    rank: int,
    rendezvous: scenarios.Rendezvous,
    folder: Path,
    shape: scenarios.Shape,
    over: str,
    backend: str = "megatron",
) -> list[dict[str, Any]]:
    """Reports of two steps on twelve rows whose advantages are all 0: the observations alone train."""
    actor = values.make_actor().model_copy(update={"backend": backend})
    cuts = [scenarios.split(i, scenarios.dp_of(shape), (6,)) for i in range(2)]
    cuts = [replace(cut, num_sequences=ROWS - 1) for cut in cuts]  # row 3 has no trained token
    batch = values.make_batch(cuts, advantage_N=np.zeros(ROWS, np.float32))
    batch = batch.with_blocks([watched(block) for block in batch.blocks])
    with scenarios.policy(rank, rendezvous, folder, shape, actor=actor, algorithm=algorithm(over)) as trained:
        return scenarios.play(trained, batch)["reports"]


def plain(folder: Path, over: str) -> list[tuple[float, float]]:
    """(mean of -log p of the observed tokens, gradient norm of the objective) of the same two steps.

    A row without a trained token is in no minibatch: its observations do not count.
    """
    setup, model = values.make_setup(0, "", folder, (1, 1, 1)), values.load_plain(folder)
    block, options = watched(values.make_block()), setup.actor.optimizer
    trains_N = np.add.reduceat(block.loss_mask_T, block.start_N[:-1]) > 0
    targets = replace(block, loss_mask_T=block.columns["observed"], columns={})
    optimizer, found = values.plain_adamw(model, options), []
    for _ in range(2):
        optimizer.zero_grad()
        logps = values.plain_logp(model, targets, setup.temperature)
        kept = [logp for logp, trains in zip(logps, trains_N, strict=True) if trains and len(logp)]
        if over == "answer":
            loss = -torch.stack([logp.mean() for logp in kept]).sum() / int(trains_N.sum())
        else:
            loss = -torch.cat(kept).mean()
        (COEFFICIENT * loss).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_grad_norm)
        optimizer.step()
        found.append((loss.item(), norm.item()))
    return found
