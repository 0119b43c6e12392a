"""Optimizer steps with each prompt computed once, beside the same steps without, on every rank."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import trainer_values as values
from trainer_models import engine_chose
from trainer_scenarios import Rendezvous, Shape, copy, dp_of, policy, split

from hybridrl.batch import TokenBlock
from hybridrl.models.spec import ModelSpec, read


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


def grouped_batch(minibatches: Any, step: int = 1, model: ModelSpec | None = None) -> Any:
    """The rows of grouped_block in two blocks, in mixed order.

    Args:
        model: the engine has sent tokens to experts of this model, and those of a prompt to the same ones for
            all answers but the last; None: it does not say.
    """
    whole = grouped_block()
    if model is not None:
        whole = _same_for_prompts(engine_chose(whole, model))
    blocks = values.select(whole, range(0, 12, 2)), values.select(whole, range(1, 12, 2))
    return values.make_batch(minibatches, blocks=blocks, step=step)


def _same_for_prompts(block: TokenBlock, samples: int = 4) -> TokenBlock:
    experts_TLK = block.columns["experts"].copy()
    for n in range(len(block)):
        if n % samples < samples - 1:
            first, prompt = block.row(n - n % samples), block.prompt_tokens_N[n]
            experts_TLK[block.row(n)][:prompt] = experts_TLK[first][:prompt]
    return replace(block, columns={**block.columns, "experts": experts_TLK})


def steps(
    rank: int,
    rendezvous: Rendezvous,
    folder: Path,
    shape: Shape,
    cuts: tuple[int, ...],
    changes: dict[str, Any],
) -> dict[bool, dict[str, Any]]:
    """Two batches of two optimizer steps on the same rows, with these changes of the actor: the first one in
    microbatches, the second in whole, dealt to the ranks in the opposite order. True: with
    actor.share_prompts."""
    found = {}
    dp, block = dp_of(shape), grouped_block()
    parts = split(0, dp, cuts).rows, split(1, dp, ()).rows[::-1]
    minibatches = [values.make_minibatch(i, rows, block) for i, rows in enumerate(parts)]
    for shared in (False, True):
        actor = values.make_actor().model_copy(update={"share_prompts": shared, **changes})
        experts = read(folder) if actor.moe.router_replay == "rollout" else None
        with policy(rank, rendezvous, folder, shape, actor=actor) as trained:
            reports, measured, counts = [], [], []
            for step in (1, 2):
                measured.append(trained.load(grouped_batch(minibatches, step, experts)))
                for minibatch in minibatches:
                    reports.append(asdict(trained.step(minibatch.index)))
                    counts.append(expert_counts(trained))
            loaded = trained._loaded
            tokens = sum(len(m.token_T) for m in loaded.microbatches(loaded.minibatches[:1]))
            found[shared] = {
                "reports": reports,
                "measured": measured,
                "counts": np.array(counts),
                "old_logp": loaded.columns["old_logp"].numpy().copy(),
                "weights": copy(trained),
                "tokens": tokens,
            }
    return found


def expert_counts(trained: Any) -> list[list[float]]:
    """How many tokens of the last step went to each expert of this rank's layers; [] without experts."""
    return [router.count_E.tolist() for router in getattr(trained._routing, "_routers", ())]
