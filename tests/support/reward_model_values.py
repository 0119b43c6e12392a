"""Reward models of random weights, what trainer ranks score with them, and the same by transformers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trainer_scenarios as scenarios
import trainer_values as values
from rows import trajectory

from hybridrl.batch import Minibatch, RankBatch
from hybridrl.config.schema import RewardModelConfig
from hybridrl.data.packing import partition_rows
from hybridrl.errors import DataError
from hybridrl.launch.reward_model_setup import scoring

MICROBATCH_TOKENS = 24
"""Less than two of the longest sequences, so a rank has several microbatches."""


def make_reward_model(policy: Path, folder: Path) -> Path:
    """The policy's layers with a random head of one label."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(7)
    model: Any = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        model.score.weight.normal_()
    model.save_pretrained(folder)
    return folder


def batch(dp: int) -> RankBatch:
    """All but two trajectories of a batch in two blocks, dealt to ranks and microbatches."""
    whole = values.make_batch([])
    chosen = np.array([n for n in range(len(whole.row_N)) if n not in (2, 9)])
    length_N = np.array([_length(whole, n) for n in chosen], np.int64)
    rows = partition_rows(np.arange(len(chosen)), length_N, num_ranks=dp, microbatch_tokens=MICROBATCH_TOKENS)
    columns = {
        c: getattr(whole, c)[chosen] for c in ("block_N", "row_N", "group_N", "reward_N", "advantage_N")
    }
    return replace(whole, minibatches=(Minibatch(0, rows, len(chosen), len(chosen)),), **columns)


def _length(batch: RankBatch, n: int) -> int:
    where = trajectory(batch, n)[1]
    return where.stop - where.start


def scored(
    rank: int,
    rendezvous: Callable[[], str],
    folder: Path,
    shapes: Sequence[Any],
    backend: str = "megatron",
) -> list[list[float] | None]:
    """The scores that this rank has in each shape; again, after the weights were away, they are the same."""
    from hybridrl.trainer.roles.reward_model import RewardModelRanks

    found: list[list[float] | None] = []
    for shape in shapes:
        actor = values.make_actor().model_copy(update={"offload": "all", "backend": backend})
        ranks = RewardModelRanks(values.make_setup(rank, rendezvous(), folder, shape, actor=actor))
        first, again = (ranks.scores(batch(scenarios.dp_of(shape))) for _ in range(2))
        ranks.close()
        if first is not None:
            np.testing.assert_array_equal(first, again)
        found.append(None if first is None else first.tolist())
    return found


def beside_the_policy(
    rank: int,
    rendezvous: Callable[[], str],
    policy: Path,
    reward_model: Path,
    shape: Any,
    backend: str = "megatron",
) -> dict[bool, dict[str, Any]]:
    """Optimizer steps of a policy whose ranks score before each of them; and the same without."""
    from hybridrl.trainer.roles.reward_model import RewardModel

    dp, found = scenarios.dp_of(shape), {}
    actor = values.make_actor().model_copy(update={"backend": backend})
    for shares in (False, True):
        minibatches = [scenarios.split(i, dp, (6,)) for i in range(2)]
        with scenarios.policy(rank, rendezvous, policy, shape, actor=actor) as trained:
            setup = scoring(trained._setup, RewardModelConfig(path=str(reward_model)))
            model = RewardModel(trained.backend.sharing(setup)) if shares else None
            trained.load(values.make_batch(minibatches))
            scores, played = [], []
            for minibatch in minibatches:
                scores += [model.scores(batch(dp))] if model else []
                report = trained.step(minibatch.index)
                played.append((report.loss, report.grad_norm))
            refused = _refusal(model, dp) if model else ""
        found[shares] = {"played": played, "scores": scores, "refused": refused}
    return found


def _refusal(model: Any, dp: int) -> str:
    """Of a batch with a token behind the last of the vocabulary."""
    wrong = batch(dp)
    wrong.blocks[0].token_T[0] = values.VOCAB
    try:
        model.scores(wrong)
    except DataError as error:
        return str(error)
    return "none"


def apart_and_beside(
    rank: int,
    rendezvous: Callable[[], str],
    policy: Path,
    reward_model: Path,
    shapes: Sequence[Any],
    backend: str = "megatron",
) -> dict[str, Any]:
    """Both, the latter in the first of the shapes."""
    return {
        "apart": scored(rank, rendezvous, reward_model, shapes, backend),
        "beside": beside_the_policy(rank, rendezvous, policy, reward_model, shapes[0], backend),
    }


def by_transformers(folder: Path) -> list[float]:
    """Of the trajectories of `batch`, one at a time."""
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    model.config.pad_token_id = None
    model.config.get_text_config().pad_token_id = None
    asked = batch(1)
    with torch.no_grad():
        places = [trajectory(asked, index) for index in range(len(asked.row_N))]
        tokens = [block.token_T[where].tolist() for block, where in places]
        return [float(model(torch.tensor([ids])).logits[0, 0]) for ids in tokens]
