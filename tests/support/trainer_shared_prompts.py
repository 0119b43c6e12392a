"""Optimizer steps with each prompt computed once, beside the same steps without, on every rank."""

from pathlib import Path
from typing import Any

import numpy as np
import trainer_values as values
from trainer_scenarios import Rendezvous, Shape, copy, dp_of, play, policy, split

from hybridrl.batch import TokenBlock


def grouped_block(count: int = 12, samples: int = 4, seed: int = 0) -> TokenBlock:
    """Answers of several lengths, `samples` to each prompt; one has a gap in its loss mask, and one is
    untrained. A prompt of one token is too short to be shared."""
    draw = np.random.default_rng(seed)
    asked = [draw.integers(0, values.VOCAB, n).tolist() for n in (6, 1, 9)]
    prompts = [asked[n // samples % len(asked)] for n in range(count)]
    responses = [draw.integers(0, values.VOCAB, draw.integers(3, 9)).tolist() for _ in range(count)]
    logps = [(-2 * draw.random(len(r))).tolist() for r in responses]
    block = TokenBlock.from_answers(prompts, responses, logps, 0)
    block.loss_mask_T[block.row(1).stop - 2] = False
    block.loss_mask_T[block.row(9)] = False
    block.columns["rollout_logp"][~block.loss_mask_T] = 0.0
    return block


def grouped_batch(minibatches: Any, step: int = 1) -> Any:
    """The rows of grouped_block in two blocks, in mixed order."""
    whole = grouped_block()
    blocks = values.select(whole, range(0, 12, 2)), values.select(whole, range(1, 12, 2))
    return values.make_batch(minibatches, blocks=blocks, step=step)


def steps(
    rank: int,
    rendezvous: Rendezvous,
    folder: Path,
    shape: Shape,
    cuts: tuple[int, ...],
    changes: dict[str, Any],
) -> dict[bool, dict[str, Any]]:
    """Two batches of two optimizer steps, with these changes of the actor; True: with actor.share_prompts."""
    found = {}
    block = grouped_block()
    for shared in (False, True):
        actor = values.make_actor().model_copy(update={"share_prompts": shared, **changes})
        with policy(rank, rendezvous, folder, shape, actor=actor) as trained:
            parts = [split(i, dp_of(shape), cuts) for i in range(2)]
            minibatches = [values.make_minibatch(m.index, m.rows, block) for m in parts]
            played = [play(trained, grouped_batch(minibatches, step)) for step in (1, 2)]
            loaded = trained._loaded
            tokens = sum(len(m.token_T) for m in loaded.microbatches(loaded.minibatches[:1]))
            found[shared] = {
                "reports": [report for one in played for report in one["reports"]],
                "old_logp": loaded.columns["old_logp"].numpy().copy(),
                "weights": copy(trained),
                "tokens": tokens,
            }
    return found
