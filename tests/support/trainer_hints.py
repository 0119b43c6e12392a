"""Self-distillation (OPSD) on trainer ranks, and by torch and transformers alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import trainer_scenarios as scenarios
import trainer_values as values

from hybridrl.batch import Minibatch, RankBatch
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.types import Hint

HINTS = (Hint((30, 31, 32)), Hint((33,), after=1), Hint((34, 35), after=1))
"""Hint of each group of four trajectories."""

ALGORITHM = AlgorithmConfig.model_validate(
    {"estimator": "distillation", "loss": "reinforce", "hint": {"field": "demonstration"}}
)


def steps(*on_rank: Any) -> list[dict[str, Any]]:
    """Reports of two steps on twelve rows, whose policy is its own teacher; the arguments are the first of
    scenarios.two_steps."""
    return scenarios.two_steps(*on_rank, algorithm=ALGORITHM, batch_of=_batch)


def _batch(minibatches: list[Minibatch]) -> RankBatch:
    return replace(values.make_batch(minibatches, advantage_N=None), hints=HINTS)


def plain(folder: Path) -> list[tuple[float, float]]:
    """(loss, gradient norm) of the same two steps: -mean of A logp, A = logp with the hint - logp before the
    first step."""
    import torch

    setup, model = values.make_setup(0, "", folder, (1, 1, 1)), values.load_plain(folder)
    block, options = values.make_block(), setup.actor.optimizer
    with torch.no_grad():
        old = values.plain_logp(model, block, setup.temperature)
        teacher = [_logp_with_hint(model, block, n, setup.temperature) for n in range(len(block))]
    optimizer, found = values.plain_adamw(model, options), []
    for _ in range(2):
        optimizer.zero_grad()
        logps = values.plain_logp(model, block, setup.temperature)
        losses = [-((t - o) * logp).sum() for t, o, logp in zip(teacher, old, logps, strict=True)]
        loss = torch.stack(losses).sum() / int(block.loss_mask_T.sum())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_grad_norm)
        optimizer.step()
        found.append((loss.item(), norm.item()))
    return found


def _logp_with_hint(model: Any, block: Any, row: int, temperature: float) -> Any:
    """Log-probabilities of the trained tokens of a row that its hint precedes."""
    import torch

    hint, where = HINTS[row // 4], block.row(row)
    tokens, mask = block.token_T[where].tolist(), block.loss_mask_T[where].tolist()
    added = len(hint.token_ids)
    whole = torch.tensor([*tokens[: hint.after], *hint.token_ids, *tokens[hint.after :]])
    logp_TV = (model(whole[None]).logits[0].float() / temperature).log_softmax(-1)
    trained = [t for t, is_trained in enumerate(mask) if is_trained]
    return torch.stack([logp_TV[t + added - 1, tokens[t]] for t in trained]) if trained else torch.zeros(0)
