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

LOSSES: dict[str, dict[str, Any]] = {
    "sampled tokens": {"name": "reinforce"},
    "some tokens": {"name": "teacher_divergence", "head_tokens": 5},
    "all tokens": {"name": "teacher_divergence", "head_tokens": 2 * values.VOCAB, "beta": 0.3},
}
"""Forms of self-distillation -> their loss."""


def steps(*on_rank: Any, form: str) -> list[dict[str, Any]]:
    """Reports of two steps on twelve rows, whose policy is its own teacher; the arguments are the first of
    scenarios.two_steps."""
    algorithm = {"estimator": "distillation", "loss": LOSSES[form], "hint": {"field": "demonstration"}}
    made = AlgorithmConfig.model_validate({**algorithm, "guards": "off"})
    return scenarios.two_steps(*on_rank, algorithm=made, batch_of=_batch)


def _batch(minibatches: list[Minibatch]) -> RankBatch:
    return replace(values.make_batch(minibatches, advantage_N=None), hints=HINTS)


def plain(folder: Path, form: str) -> list[tuple[float, float]]:
    """(loss, gradient norm) of the same two steps. On the sampled tokens: -mean of A logp, A = logp with the
    hint - logp before the first step. On distributions: the mean divergence of those with and without it."""
    import torch

    setup, model = values.make_setup(0, "", folder, (1, 1, 1)), values.load_plain(folder)
    block, options, temperature = values.make_block(), setup.actor.optimizer, setup.temperature
    rows = range(len(block))
    with torch.no_grad():
        old = [_logp(model, block, n, temperature, hinted=False) for n in rows]
        teacher = [_logp(model, block, n, temperature, hinted=True) for n in rows]
    optimizer, found = values.plain_adamw(model, options), []
    for _ in range(2):
        optimizer.zero_grad()
        losses = [
            _loss(LOSSES[form], teacher[n], old[n], _logp(model, block, n, temperature, hinted=False))
            for n in rows
        ]
        loss = torch.stack(losses).sum() / int(block.loss_mask_T.sum())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_grad_norm)
        optimizer.step()
        found.append((loss.item(), norm.item()))
    return found


def _loss(loss: dict[str, Any], teacher: Any, old: Any, new: Any) -> Any:
    """Sum of a row; the arguments are as _logp returns them."""
    import torch

    (teacher_UV, at_U), (old_UV, _), (logp_UV, _) = teacher, old, new
    row_U = torch.arange(len(at_U))
    if loss["name"] == "reinforce":
        advantage_U = teacher_UV[row_U, at_U] - old_UV[row_U, at_U]
        return -(advantage_U * logp_UV[row_U, at_U]).sum()
    t_UV, p_UV, beta = teacher_UV.exp(), logp_UV.exp(), loss.get("beta", 0.5)
    if (count := loss["head_tokens"]) < values.VOCAB:
        head_UK = t_UV.topk(count, dim=1).indices
        heads = [full_UV.gather(1, head_UK) for full_UV in (t_UV, p_UV)]
        t_UV, p_UV = (torch.cat([head, 1 - head.sum(1, keepdim=True)], dim=1) for head in heads)
    mixture_UV = beta * t_UV + (1 - beta) * p_UV
    sides = ((beta, t_UV), (1 - beta, p_UV))
    return torch.stack([w * (a * (a / mixture_UV).log()).sum() for w, a in sides]).sum()


def _logp(model: Any, block: Any, row: int, temperature: float, *, hinted: bool) -> tuple[Any, Any]:
    """Log-probabilities of all tokens at the trained places of a row, which its hint may precede, and the
    trained tokens."""
    import torch

    hint, where = HINTS[row // 4], block.row(row)
    tokens, mask = block.token_T[where].tolist(), block.loss_mask_T[where].tolist()
    ids = hint.token_ids if hinted else ()
    whole = torch.tensor([*tokens[: hint.after], *ids, *tokens[hint.after :]])
    logp_TV = (model(whole[None]).logits[0].float() / temperature).log_softmax(-1)
    trained = torch.tensor([t for t, is_trained in enumerate(mask) if is_trained], dtype=torch.int64)
    return logp_TV[trained + len(ids) - 1], torch.tensor(tokens)[trained]
