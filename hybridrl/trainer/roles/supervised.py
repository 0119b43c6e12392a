"""Supervised training on one rank: likelihood of answers (SFT), or preference between two answers (RM).

Every method of Supervised is *collective*: all ranks call it, in the same order.
Shape letters: R trained tokens of a microbatch, O those of the R that this rank predicts, P pairs of the
microbatch.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from hybridrl.algorithms.base import Metrics
from hybridrl.batch import Minibatch, RankBatch
from hybridrl.trainer import base
from hybridrl.trainer.loaded import LoadedBatch
from hybridrl.trainer.places import Microbatch
from hybridrl.trainer.roles.base import Role, optimizer_step
from hybridrl.trainer.score import Scorer
from hybridrl.trainer.setup import RankSetup
from hybridrl.types import StepReport

Loss = Callable[[LoadedBatch, Minibatch, Microbatch, Tensor], tuple[Tensor, Metrics]]
"""Computes a microbatch's share of the objective, and of the metrics."""

LOSS = "train/loss"


class Supervised(Role):
    def __init__(self, setup: RankSetup, num_steps: int) -> None:
        """Join the other ranks and build the model with the weights of the model folder.

        A model with a value head is trained on preferences, others on the likelihood of answers. A value head
        that the folder lacks starts at 0.

        Args:
            num_steps: length of the learning-rate schedule.

        Raises:
            ResourceError, LayoutError, ModelError: as for base.open.
        """
        super().__init__(base.open(setup))
        scores = setup.model.value_head
        with self.backend.scope():
            self._model = self.backend.build(value_head=scores)
            self._model.load(setup.model_folder)
            self._trained = {"policy": (self._model, self._model.optimizer(setup.actor.optimizer, num_steps))}
            self._scorer = Scorer(self._model, temperature=1.0)
        self._loss: Loss = self._preference if scores else self._likelihood

    def step(self, batch: RankBatch) -> StepReport:
        """Take one optimizer step on a batch of one minibatch.

        Each pair is two consecutive rows: the better answer in an even row, the other one in the next.

        Returns:
            The same report on every rank.

        Raises:
            NonFiniteError: loss or gradient norm is inf or NaN; parameters and optimizer are unchanged.
        """
        loaded = self.backend.load(batch)
        (minibatch,) = loaded.minibatches
        with self.backend.scope():
            share, part = partial(self._loss, loaded, minibatch), self._trained["policy"]
            microbatches, where = loaded.microbatches([minibatch]), f"step {loaded.step}"
            metrics, grad_norm, lr = optimizer_step(
                part, self._mesh, microbatches, share, name=LOSS, where=where
            )
        return StepReport(loaded.step, metrics[LOSS], grad_norm, lr, metrics)

    def evaluate(self, batch: RankBatch) -> dict[str, float]:
        """Metrics that `step` would report for a batch of one minibatch, without training on it."""
        loaded = self.backend.load(batch)
        (minibatch,) = loaded.minibatches
        shares: list[Metrics] = []

        def visit(microbatch: Microbatch, hidden_O1: Tensor) -> None:
            shares.append(self._loss(loaded, minibatch, microbatch, hidden_O1)[1])

        with self.backend.scope():
            self._model.evaluate(loaded.microbatches([minibatch]), visit)
            return self._mesh.combine(shares)

    def export(self, folder: Path) -> None:
        """Write the present weights in Hugging Face format."""
        self.backend.export(folder, self._model.tensors())

    def _likelihood(
        self, loaded: LoadedBatch, minibatch: Minibatch, microbatch: Microbatch, hidden_O1: Tensor
    ) -> tuple[Tensor, Metrics]:
        """This microbatch's share of the mean of -log p over the trained tokens of the whole minibatch."""
        logp_R, _ = self._scorer.score(microbatch, hidden_O1)
        share = -logp_R.sum() / minibatch.num_tokens
        return share, Metrics({LOSS: share.detach().clone()})  # the backward pass may scale the loss in place

    def _preference(
        self, loaded: LoadedBatch, minibatch: Minibatch, microbatch: Microbatch, hidden_O1: Tensor
    ) -> tuple[Tensor, Metrics]:
        """This microbatch's share of the mean of -log sigmoid(chosen - rejected - margin) over all pairs.

        Source: Bradley and Terry 1952.
        """
        row_R = loaded.trajectory_U[microbatch.trained_R]
        order_R = row_R.argsort()
        value_R = self._model.values(microbatch, hidden_O1)
        score_P2 = value_R[order_R].view(-1, 2)
        ahead_P = score_P2[:, 0] - score_P2[:, 1]
        margin_P = loaded.scalars["margin"][row_R[order_R][::2]]
        num_pairs = minibatch.num_sequences // 2
        share = -F.logsigmoid(ahead_P - margin_P).sum() / num_pairs
        means = {"train/accuracy": (ahead_P > 0).float(), "train/reward_gap": ahead_P.detach()}
        means |= {"train/reward": score_P2.detach().mean(1)}
        found = {name: (value_P / num_pairs).sum() for name, value_P in means.items()}
        return share, Metrics({LOSS: share.detach().clone(), **found})
