"""Models that are evaluated and not trained: reference and teacher.

Both are sets of weights that the policy's model is temporarily switched to. A teacher may read more than the
policy: a hint (self-distillation, arXiv:2601.19897); then it may also be the policy itself.

Shape letters: U trained tokens of the batch.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hybridrl.batch import RankBatch
from hybridrl.trainer import base
from hybridrl.trainer.base import Model
from hybridrl.trainer.hints import with_hints
from hybridrl.trainer.loaded import LoadedBatch
from hybridrl.trainer.offload import Offload
from hybridrl.trainer.roles.base import Role
from hybridrl.trainer.score import Scorer
from hybridrl.trainer.setup import PolicySetup


class FrozenPolicies:
    def __init__(
        self,
        model: Model,
        scorer: Scorer,
        weights: Mapping[str, Mapping[str, Tensor] | None],
        *,
        teacher_head_tokens: int = 0,
    ) -> None:
        """
        Args:
            scorer: scorer of `model`.
            weights: weights of each policy, by the column that it fills. A weight that is missing is the
                model's own, without adapters. None in place of weights: the model as it is, with adapters.
            teacher_head_tokens: how many of its likeliest tokens the teacher gives at each place.
        """
        self._teacher_head_tokens = teacher_head_tokens
        self._model, self._scorer, self._weights = model, scorer, weights

    def tensors(self) -> Iterator[Tensor]:
        return (tensor for weights in self._weights.values() if weights for tensor in weights.values())

    def add(self, loaded: LoadedBatch, hinted: LoadedBatch | None = None) -> None:
        """Add the columns of all policies, at the tokens of this rank. *Collective*.

        Args:
            hinted: the batch as the teacher reads it; None: as the others read it.
        """
        for column, weights in self._weights.items():
            read = hinted if hinted is not None and column == "teacher_logp" else loaded
            with self._computing(weights):
                for name, column_U in self._columns(column, read).items():
                    loaded.add(name, column_U)

    def _columns(self, column: str, read: LoadedBatch) -> dict[str, Tensor]:
        microbatches, count = read.microbatches(read.first_epoch), self._teacher_head_tokens
        if column != "teacher_logp" or not count:
            return {column: self._scorer.columns(read.packed, microbatches)[0]}
        logp_U, head_UK, head_logp_UK = self._scorer.head_columns(read.packed, microbatches, count)
        return {column: logp_U, "teacher_head": head_UK, "teacher_head_logp": head_logp_UK}

    @contextlib.contextmanager
    def _computing(self, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
        if weights is None:
            yield
            return
        with self._model.without_adapters(), self._model.computing_with(weights):
            yield


class FrozenRanks(Role):
    """Reference and teacher on dedicated ranks: a separate group of processes with its own parallel layout.

    They get the batches of the actor, partitioned over their own ranks, and return columns.
    """

    def __init__(self, setup: PolicySetup, *columns: str) -> None:
        """Join the other ranks and hold the policies that fill `columns`: ref_logp, teacher_logp.

        Raises: the errors of base.open.
        """
        super().__init__(base.open(setup))
        self._hints = setup.algorithm.hint is not None and "teacher_logp" in columns
        with self.backend.scope():
            model = self.backend.build(trained=False)
            own = model.tensors()
            held: dict[str, dict[str, Tensor]] = {}
            for column in columns:
                held[column] = {n: torch.empty_like(t) for n, t in own.items()} if held else own
                model.load(frozen_folder(setup, column), into=held[column])
            self._policies = FrozenPolicies(model, Scorer(model, setup.temperature), held)
            self._offload = Offload(self._policies.tensors() if setup.actor.offload == "all" else ())
            self._offload.leave()

    def load(self, batch: RankBatch) -> None:
        """Take a batch and compute the columns of all policies."""
        self._loaded = self.backend.load(batch)
        hinted = self.backend.load(with_hints(batch)) if self._hints else None
        with self.backend.scope(), self._offload.at_home():
            self._policies.add(self._loaded, hinted)


def frozen_folder(setup: PolicySetup, column: str) -> Path:
    """Folder of the model that fills a column."""
    if column == "ref_logp":
        return setup.model_folder
    assert setup.algorithm.teacher is not None, "load_credit refuses a config without one"
    return Path(setup.algorithm.teacher)
