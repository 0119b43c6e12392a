"""Examples of random tokens, what trainer ranks learn from them, and the same by plain torch."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import trainer_values as values

from hybridrl.batch import RankBatch
from hybridrl.controller.supervised_loop import pack
from hybridrl.data.examples import Encoded, Example
from hybridrl.models.spec import read, without_vocabulary

MICROBATCH_TOKENS = 48


def conversations(count: int = 12) -> list[Example]:
    """Of several lengths; every third has an answer in its middle as well."""
    draw = np.random.default_rng(5)
    found = []
    for i in range(count):
        asked, told = draw.integers(2, 6), draw.integers(1, 9)
        learnt = [False] * asked + [True] * told
        learnt[asked // 2] = i % 3 == 0
        found.append(Example((Encoded(draw.integers(0, values.VOCAB, len(learnt)).tolist(), learnt),)))
    return found


def pairs(count: int = 7) -> list[Example]:
    """The last token of a sequence stands for its score."""
    draw = np.random.default_rng(6)

    def scored() -> Encoded:
        length = int(draw.integers(3, 12))
        return Encoded(draw.integers(0, values.VOCAB, length + 1).tolist(), [False] * length + [True])

    return [Example((scored(), scored()), margin=0.1 * i) for i in range(count)]


EXAMPLES: dict[str, Callable[[], list[Example]]] = {"sft": conversations, "rm": pairs}


def train(
    rank: int,
    rendezvous: Callable[[], str],
    folder: Path,
    shape: Any,
    steps: int,
    out: Path,
    **changes: Any,
) -> dict[str, Any]:
    """Both kinds after one another: reports of `steps` steps, an evaluation, an export."""
    from hybridrl.trainer.roles.supervised import Supervised

    found = {}
    for kind, examples in EXAMPLES.items():
        setup = values.make_setup(rank, rendezvous(), folder, shape, **changes)
        if kind == "rm":
            setup = replace(setup, model=without_vocabulary(read(folder), head="value"))
        model = Supervised(setup, setup.num_optimizer_steps)
        actor = setup.actor.model_copy(
            update={"parallel": setup.parallel, "microbatch_tokens": MICROBATCH_TOKENS}
        )
        reports = [model.step(rank_batch(actor, i + 1, examples())) for i in range(steps)]
        evaluated = model.evaluate(rank_batch(actor, steps, examples()))
        model.export(out / kind)
        model.close()
        losses = [(report.loss, report.grad_norm) for report in reports]
        found[kind] = {"losses": losses, "metrics": dict(reports[-1].metrics), "evaluated": evaluated}
    return found


def rank_batch(actor: Any, step: int, examples: list[Example]) -> RankBatch:
    batch, minibatch = pack(actor, step, examples)
    return RankBatch(
        step,
        tuple(batch.blocks),
        batch.block_N,
        batch.row_N,
        batch.group_N,
        batch.reward_N,
        None,
        (minibatch,),
        batch.scalars,
    )


def plain_sft(folder: Path, steps: int) -> Iterator[tuple[float, float]]:
    """Loss and gradient norm of each step, one conversation at a time; the last is the loss after them."""
    model, options = values.load_plain(folder), values.make_actor().optimizer
    optimizer = values.plain_adamw(model, options)

    def loss() -> torch.Tensor:
        total, count = torch.zeros(()), 0
        for example in conversations():
            (encoded,) = example.sequences
            token_T, learnt_T = torch.tensor(encoded.token_ids), torch.tensor(encoded.trained)[1:]
            target_T = torch.where(learnt_T, token_T[1:], -100)
            total = total + F.cross_entropy(model(token_T[None]).logits[0, :-1], target_T, reduction="sum")
            count += int(learnt_T.sum())
        return total / count

    yield from _steps(model, optimizer, options.clip_grad_norm, loss, steps)


def plain_rm(folder: Path, steps: int) -> Iterator[tuple[float, float]]:
    """The same of a model with a new head, one answer at a time."""
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    torch.nn.init.zeros_(model.score.weight)
    options = values.make_actor().optimizer
    optimizer = values.plain_adamw(model, options)

    def loss() -> torch.Tensor:
        total = torch.zeros(())
        for example in pairs():
            chosen, rejected = (
                model(torch.tensor(encoded.token_ids[:-1])[None]).logits[0, 0]
                for encoded in example.sequences
            )
            total = total - F.logsigmoid(chosen - rejected - example.margin)
        return total / len(pairs())

    yield from _steps(model, optimizer, options.clip_grad_norm, loss, steps)


def _steps(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: float,
    loss: Callable[[], torch.Tensor],
    steps: int,
) -> Iterator[tuple[float, float]]:
    for _ in range(steps):
        optimizer.zero_grad()
        found = loss()
        found.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        yield found.item(), norm.item()
    yield loss().item(), 0.0
