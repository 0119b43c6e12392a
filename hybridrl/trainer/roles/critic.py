"""The critic on one rank: a value for every trained token, trained together with the policy.

It is the policy's model with a value head (one number) in place of the output layer; its values start at 0.
Shape letters: U trained tokens of the batch, H trained tokens of the trajectories on this rank, R trained
tokens of one microbatch.
"""

import numpy as np
import torch
from torch import Tensor

from hybridrl.algorithms.base import Metrics, Reduce, TokenLoss, Tokens
from hybridrl.algorithms.plugins import build as build_plugin
from hybridrl.batch import Minibatch, RankBatch
from hybridrl.config.training import CriticConfig
from hybridrl.trainer import base
from hybridrl.trainer.base import Model
from hybridrl.trainer.loaded import LoadedBatch
from hybridrl.trainer.mesh import Mesh
from hybridrl.trainer.places import Microbatch
from hybridrl.trainer.roles.base import Role, offload, optimizer_step
from hybridrl.trainer.score import value_column
from hybridrl.trainer.setup import PolicySetup


class Critic:
    """The value model and its optimizer. Every method is *collective*."""

    def __init__(self, config: CriticConfig, model: Model, mesh: Mesh, *, num_steps: int) -> None:
        """
        Args:
            model: model with a value head and the initial weights.
            num_steps: length of the learning-rate schedule.

        Raises:
            ConfigError: the value loss or one of its options is unknown.
        """
        self._loss = build_plugin("value_loss", config.loss.name, config.loss.options, where="critic.loss")
        self.model, self._mesh = model, mesh
        self.part = model, model.optimizer(config.optimizer, num_steps)

    def values(self, loaded: LoadedBatch) -> Tensor:
        """Column value, [U]: the value of the answer up to, and without, each trained token."""
        return value_column(self.model, loaded.packed, loaded.microbatches(loaded.first_epoch))

    def step(self, loaded: LoadedBatch, minibatch: Minibatch) -> dict[str, float]:
        """Take one optimizer step towards the column return.

        Raises:
            NonFiniteError: loss or gradient norm is inf or NaN; the critic's weights are unchanged.
        """
        num_tokens = max(1, minibatch.num_tokens)

        def loss(microbatch: Microbatch, hidden_O1: Tensor) -> tuple[Tensor, Metrics]:
            old_value_R, return_R = (loaded.columns[c][microbatch.trained_R] for c in ("value", "return"))
            mask_R = torch.ones_like(microbatch.seq_R, dtype=torch.bool)
            outcome: TokenLoss = self._loss(
                value_T=microbatch.trained(self.model.values(microbatch, hidden_O1)),
                return_T=return_R,
                tokens=Tokens(microbatch.seq_R, mask_R, microbatch.num_seqs),
                old_value_T=old_value_R,
            )
            share = outcome.loss_T.sum() / num_tokens
            means = {name: column_R.sum() / num_tokens for name, column_R in outcome.mean.items()}
            return share, Metrics({_LOSS: share.detach().clone(), **means})

        microbatches, where = (
            loaded.microbatches([minibatch]),
            f"step {loaded.step}, minibatch {minibatch.index}",
        )
        metrics, grad_norm, lr = optimizer_step(
            self.part, self._mesh, microbatches, loss, name=_LOSS, where=where
        )
        return metrics | {"critic/grad_norm": grad_norm, "critic/lr": lr}


class CriticRanks(Role):
    """The critic on dedicated ranks: a separate group of processes with its own parallel layout.

    It gets the batches of the actor: the minibatches have the same trajectories, partitioned over the
    critic's ranks. Its column value goes to the actor's ranks, and their column return comes back.
    """

    def __init__(self, setup: PolicySetup) -> None:
        """Join the other ranks of the critic and build it from the model folder.

        Raises: the errors of base.open, and ConfigError for an unknown value loss.
        """
        super().__init__(base.open(setup), async_save=setup.async_save, goes_on_unsaved=setup.goes_on_unsaved)
        with self.backend.scope():
            model = self.backend.build(value_head=True)
            model.load(setup.model_folder)
            self._critic = Critic(setup.critic, model, self._mesh, num_steps=setup.num_optimizer_steps)
            self._trained = {"critic": self._critic.part}
            self._offload = offload(setup.actor.offload, self._trained.values(), model.tensors().values())
            self._offload.leave()

    def load(self, batch: RankBatch) -> None:
        """Take a batch and compute column value."""
        with self.backend.scope():
            self._offload.begin_return()
            self._offload.finish_return()
            self._loaded = self.backend.load(batch)
            self._loaded.add("value", self._critic.values(self._loaded))
            if self._mesh.is_last_stage:
                self._loaded.share(self._mesh)

    def take(self, return_U: np.ndarray) -> None:
        """Take column return of the loaded batch from the actor's ranks."""
        self._loaded.take("return", return_U)

    def step(self, index: int) -> dict[str, float]:
        """Take one optimizer step on minibatch `index` of the loaded batch.

        Returns:
            Metrics, the same on every rank.

        Raises:
            NonFiniteError: loss or gradient norm is inf or NaN; the critic's weights are unchanged.
        """
        loaded, minibatch = self._loaded, self._loaded.minibatches[index]
        with self.backend.scope():
            metrics = self._critic.step(loaded, minibatch)
            if minibatch is loaded.minibatches[-1]:
                self._offload.leave()
        return metrics


def value_metrics(loaded: LoadedBatch, reduce: Reduce) -> dict[str, float]:
    """Means over the trained tokens of the batch, and the share of the returns' variance that values
    explain.

    *Collective* over data-parallel ranks.
    """
    value_H, return_H, advantage_H = (loaded.held(c).double() for c in ("value", "return", "advantage"))
    columns = [value_H, return_H, advantage_H, return_H.square(), return_H - value_H]
    columns += [columns[-1].square(), torch.ones_like(value_H)]
    *sums, count = reduce.sum(torch.stack([column.sum() for column in columns])).tolist()
    value, total, advantage, squares, gap, gap_squares = (s / max(count, 1.0) for s in sums)
    variance, unexplained = squares - total**2, gap_squares - gap**2
    return {
        "critic/values/mean": value,
        "critic/returns/mean": total,
        "critic/advantages/mean": advantage,
        "critic/vf_explained_var": 1 - unexplained / variance if variance > 1e-12 else 0.0,
    }


_LOSS = "critic/vf_loss"
