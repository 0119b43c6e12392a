"""The critic on one Megatron rank: a value for every trained token, learned beside the policy.

It is the policy's model with one number in place of the vocabulary; that number starts as 0.
Shape letters: U trained tokens of the batch, H those held here, R those of one microbatch.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hybridrl.algorithms.base import Metrics, Reduce, TokenLoss, Tokens
from hybridrl.algorithms.plugins import build as build_plugin
from hybridrl.batch import Minibatch
from hybridrl.config.training import CriticConfig
from hybridrl.errors import NonFiniteError
from hybridrl.trainer.megatron.collectives import combine
from hybridrl.trainer.megatron.loaded import LoadedBatch
from hybridrl.trainer.megatron.model import Stage, named_parameters
from hybridrl.trainer.megatron.optimizer import Optimizer
from hybridrl.trainer.megatron.packing import Microbatch
from hybridrl.trainer.megatron.schedule import accumulate_gradients
from hybridrl.trainer.megatron.score import value_column, values


class Critic:
    """Every method is *collective*."""

    def __init__(
        self,
        config: CriticConfig,
        model: Stage,
        weights: Mapping[str, Tensor],
        *,
        num_steps: int,
    ) -> None:
        """
        Args:
            model: built with a value head; its other parameters take over the `weights` of the same names.
            num_steps: length of the learning-rate schedule.

        Raises:
            ConfigError: an unknown value loss, or option of it.
        """
        self._loss = build_plugin("value_loss", config.loss.name, config.loss.options, where="critic.loss")
        self.model = model
        with torch.no_grad():
            for name, parameter in named_parameters(model):
                if name in weights:
                    parameter.copy_(weights[name])
        self.optimizer = Optimizer(config.optimizer, model, num_steps)

    def values(self, loaded: LoadedBatch) -> Tensor:
        """Column value, [U]: of the answer up to and without each trained token."""
        return value_column(self.model, loaded.packed, loaded.microbatches(loaded.first_epoch))

    def step(self, loaded: LoadedBatch, minibatch: Minibatch) -> dict[str, float]:
        """One optimizer step towards the column return.

        Raises:
            NonFiniteError: loss or gradient norm is inf or NaN; its weights are as they were.
        """
        num_tokens = max(1, minibatch.num_tokens)

        def loss(microbatch: Microbatch, hidden_O1: Tensor) -> tuple[Tensor, Metrics]:
            old_value_R, return_R = (loaded.columns[c][microbatch.trained_R] for c in ("value", "return"))
            mask_R = torch.ones_like(microbatch.seq_R, dtype=torch.bool)
            outcome: TokenLoss = self._loss(
                value_T=values(self.model, microbatch, hidden_O1),
                return_T=return_R,
                tokens=Tokens(microbatch.seq_R, mask_R, microbatch.num_seqs),
                old_value_T=old_value_R,
            )
            share = outcome.loss_T.sum() / num_tokens
            means = {name: column_R.sum() / num_tokens for name, column_R in outcome.mean.items()}
            return share, Metrics({_LOSS: share.detach().clone(), **means})

        self.optimizer.zero_gradients()
        metrics = combine(accumulate_gradients(self.model, loaded.microbatches([minibatch]), loss))
        value_loss, grad_norm = metrics.get(_LOSS, 0.0), self.optimizer.gradient_norm()
        if not (math.isfinite(grad_norm) and math.isfinite(value_loss)):
            raise NonFiniteError(
                f"critic: loss {value_loss}, gradient norm {grad_norm}",
                where=f"step {loaded.step}, minibatch {minibatch.index}",
            )
        lr = self.optimizer.step(grad_norm)
        return metrics | {"critic/grad_norm": grad_norm, "critic/lr": lr}


def value_metrics(loaded: LoadedBatch, reduce: Reduce) -> dict[str, float]:
    """Means over the trained tokens of the batch, and the share of the returns' variance that values explain.

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
