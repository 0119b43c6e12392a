"""Models that are asked but not trained. Reference and teacher are weights that a model takes for a while.

Shape letters: U trained tokens of the batch.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hybridrl.layout.megatron import MegatronLayout
from hybridrl.reshard.checkpoint import load_hf
from hybridrl.trainer.megatron import lora
from hybridrl.trainer.megatron.architecture import transformer_config
from hybridrl.trainer.megatron.loaded import LoadedBatch
from hybridrl.trainer.megatron.model import Stage, build, named_parameters
from hybridrl.trainer.megatron.offload import Offload, gradient_buffers
from hybridrl.trainer.megatron.score import Scorer
from hybridrl.trainer.setup import TrainerSetup


class FrozenPolicies:
    def __init__(
        self,
        model: Stage,
        scorer: Scorer,
        weights: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        """
        Args:
            scorer: of `model`.
            weights: of each policy, by the column that it fills; what is not among them is as the model has
                it, without adapters.
        """
        self._model, self._scorer, self._weights = model, scorer, weights

    def tensors(self) -> Iterator[Tensor]:
        return (tensor for weights in self._weights.values() for tensor in weights.values())

    def add(self, loaded: LoadedBatch) -> None:
        """Its columns, at the tokens that this rank holds. *Collective*."""
        for column, weights in self._weights.items():
            with lora.switched_off(self._model), self._in_place(weights):
                logp_U, _ = self._scorer.columns(loaded.packed, loaded.microbatches(loaded.first_epoch))
            loaded.add(column, logp_U)

    @contextlib.contextmanager
    def _in_place(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the model computes with these; its own are not touched."""
        own = {name: parameter.data for name, parameter in named_parameters(self._model)}
        self._point_to(weights)
        try:
            yield
        finally:
            self._point_to(own)

    def _point_to(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in named_parameters(self._model):
            if name in weights:
                parameter.data = weights[name]


def frozen_model(
    setup: TrainerSetup, layout: MegatronLayout, device: torch.device, *, value_head: bool = False
) -> Stage:
    """A model that nobody trains: all parameters 0, and no memory for gradients. *Collective*."""
    config = transformer_config(setup, device)
    model = build(config, setup.model, layout.padded_vocab, device, value_head=value_head)
    Offload((), gradient_buffers(model)).leave()  # for good
    return model


def reference_weights(live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the reference policy, which is the model folder's: a copy, taken before anything is trained."""
    return {name: tensor.clone() for name, tensor in live.items()}


def teacher_weights(
    setup: TrainerSetup, layout: MegatronLayout, live: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Of the teacher, cut as the `live` ones."""
    weights = {name: torch.empty_like(tensor) for name, tensor in live.items()}
    load_hf(frozen_folder(setup, "teacher_logp"), layout, setup.rank, weights)
    return weights


def frozen_folder(setup: TrainerSetup, column: str) -> Path:
    """The model that fills a column."""
    if column == "ref_logp":
        return setup.model_folder
    assert setup.algorithm.teacher is not None, "load_credit asks for one"
    return Path(setup.algorithm.teacher)
