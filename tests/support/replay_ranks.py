"""Trainer ranks that record a policy update, and take it again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import trainer_values as values
from trainer_scenarios import Rendezvous, Shape, dp_of, policy, split

from hybridrl.batch import RankBatch, TokenBlock
from hybridrl.trainer import bundles, saved_groups
from hybridrl.trainer.bundles import Bundle, Found


def batch_of(dp: int, *, is_finite: bool = True) -> RankBatch:
    """Two optimizer steps over all trajectories, whose rows in their blocks are in another order."""
    batch = values.make_batch([split(index, dp, (6,)) for index in range(2)], step=3)
    blocks = tuple(saved_groups.select(block, range(len(block))[::-1]) for block in batch.blocks)
    batch = replace(batch, blocks=blocks, row_N=len(blocks[0]) - 1 - batch.row_N)
    assert batch.advantage_N is not None
    advantage_N = batch.advantage_N.copy()
    advantage_N[0] = advantage_N[0] if is_finite else np.inf
    return replace(batch, advantage_N=advantage_N)


def record(
    rank: int, rendezvous: Rendezvous, model: Path, shape: Shape, folder: Path, batch: RankBatch
) -> Found:
    """Write the bundle of a policy update that follows another one."""
    import torch.distributed as dist

    from hybridrl.replay.ranks import steps_of

    unfinished = folder.with_suffix(".tmp")
    with policy(rank, rendezvous, model, shape) as trained:
        trained.load(batch_of(dp_of(shape)))
        trained.step(0)
        if rank == 0:
            bundles.begin(unfinished)
        dist.barrier()
        trained.save(unfinished / bundles.STATE)
        trained.finish_saving()
        loaded = trained.load(batch)
        steps = steps_of(trained, range(2))
        of_each: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(of_each, trained.recorded())
    columns = next(found for found, _ in of_each if found)
    found = Found(loaded, tuple(steps), columns, tuple(weights for _, weights in of_each))
    if rank == 0:
        bundle = bundle_of(batch, found)
        bundles.write(unfinished, folder, bundle, "run: {name: recorded}\n")
    return found


def bundle_of(batch: RankBatch, found: Found, **changes: Any) -> Bundle:
    made = Bundle(
        why="",
        batch=batch,
        score_N=batch.reward_N,
        prompts=(4, 9, 7),
        first=0,
        columns_are_given=False,
        found=found,
    )
    return replace(made, **changes)


def take_again(
    rank: int, rendezvous: Rendezvous, model: Path, shape: Shape, folder: Path, plant: bool
) -> Any:
    """
    Args:
        plant: the ranks take every loss mask, and what is aligned with it, one token too early.
    """
    from hybridrl.replay import ranks

    bundle = bundles.read(folder)
    batch = bundle.batch
    if dp_of(shape) != len(batch.minibatches[0].rows):
        batch = replace(batch, minibatches=batch_of(dp_of(shape)).minibatches)
    if plant:
        batch = replace(batch, blocks=tuple(map(one_too_early, batch.blocks)))
    setup = values.make_setup(0, "", model, shape)
    return ranks.take_again(rank, rendezvous(), setup, folder, batch, {}, {}, range(2))


def one_too_early(block: TokenBlock) -> TokenBlock:
    """The block with its loss mask, and the columns of tokens, moved by one token."""
    columns = {name: np.roll(column, -1) for name, column in block.columns.items()}
    return replace(block, loss_mask_T=np.roll(block.loss_mask_T, -1), columns=columns)
