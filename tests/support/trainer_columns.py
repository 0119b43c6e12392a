"""Columns that the project knows nothing of, on their way through trainer ranks: a number of each token and a
picture of each prompt, and the loss and the estimator that ask for them."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import trainer_scenarios as scenarios
import trainer_values as values
from torch import Tensor

from hybridrl.algorithms.base import (
    Advantage,
    Reduce,
    TokenLoss,
    Tokens,
    register_estimator,
    register_policy_loss,
)
from hybridrl.batch import RankBatch, TokenBlock
from hybridrl.columns import ColumnSpec, declare
from hybridrl.config.schema import AlgorithmConfig

SEEN: dict[str, list[Any]] = {"loss": [], "estimator": [], "pictures": []}
"""What plug-ins of this process received."""


def declare_all() -> None:
    """Called on ranks: the process of the tests keeps the table of the project."""
    declare("mood", ColumnSpec("token", "int64", "block", "a number of each token", 0))
    declare("picture", ColumnSpec("prompt", "float32", "block", "what the question shows", axes="PC"))


@register_policy_loss("mood_loss")
class MoodLoss:
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "mood", "rollout_logp"})

    def __call__(
        self,
        logp_T: Tensor,
        advantage_T: Tensor,
        tokens: Tokens,
        old_logp_T: Tensor,
        mood_T: Tensor,
        rollout_logp_T: Tensor,
    ) -> TokenLoss:
        SEEN["loss"].append((mood_T.numpy().copy(), rollout_logp_T.numpy().copy()))
        return TokenLoss(-(logp_T - old_logp_T).exp() * advantage_T * mood_T)


@register_estimator("mood_advantage")
class MoodAdvantage:
    needs: ClassVar[frozenset[str]] = frozenset({"mood", "picture"})

    def __call__(
        self,
        reward_N: Tensor,
        group_N: Tensor,
        tokens: Tokens,
        reduce: Reduce,
        mood_T: Tensor,
        picture_NPC: list[np.ndarray],
    ) -> Advantage:
        SEEN["estimator"].append(mood_T.numpy().copy())
        SEEN["pictures"].append([float(picture[0, 0]) for picture in picture_NPC])
        shown_N = torch.tensor([float(picture.sum()) for picture in picture_NPC])
        return Advantage(shown_N[tokens.seq_T] * mood_T)


def marked(block: TokenBlock, first: int) -> TokenBlock:
    """Trained tokens are numbered from `first` on; neighbours in pairs answer one prompt."""
    mood_T = np.where(block.loss_mask_T, first + np.arange(len(block.token_T)), 0)
    pictures = np.empty(len(block), object)
    for row in range(len(block)):
        pictures[row] = pictures[row - 1] if row % 2 else np.full((2 + row, 3), first + row, np.float32)
    return replace(block, columns={**block.columns, "mood": mood_T, "picture": pictures})


def marked_batch(dp: int) -> RankBatch:
    minibatches = [scenarios.split(i, dp, (6,)) for i in range(2)]
    batch = values.make_batch(minibatches, advantage_N=None)
    return batch.with_blocks(marked(block, 1000 * (b + 1)) for b, block in enumerate(batch.blocks))


def travel(
    rank: int, rendezvous: scenarios.Rendezvous, folder: Path, shape: scenarios.Shape
) -> dict[str, Any]:
    """What a loss and an estimator of this rank received over two optimizer steps, and their losses."""
    declare_all()
    algorithm = AlgorithmConfig.model_validate(
        {"loss": "trainer_columns:MoodLoss", "estimator": "trainer_columns:MoodAdvantage"}
    )
    batch = marked_batch(scenarios.dp_of(shape))
    with scenarios.policy(rank, rendezvous, folder, shape, algorithm=algorithm) as trained:
        reports = scenarios.play(trained, batch)["reports"]
    trained_T = [(block.trained("mood"), block.trained("rollout_logp")) for block in batch.blocks]
    pictures = [float(block.columns["picture"][row][0, 0]) for block, row in map(placed(batch), range(12))]
    return SEEN | {"sent": trained_T, "sent_pictures": pictures, "losses": [r["loss"] for r in reports]}


def placed(batch: RankBatch) -> Any:
    return lambda n: (batch.blocks[batch.block_N[n]], int(batch.row_N[n]))
