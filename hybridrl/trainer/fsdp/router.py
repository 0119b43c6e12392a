"""The routers of transformers' layers, replaced: trainer/experts.py says which experts a token goes to.

Shape letters: T tokens of this rank, E experts of a layer, K experts chosen for a token, H hidden size.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from hybridrl.models.spec import ModelSpec
from hybridrl.trainer.experts import (
    Choices,
    EngineChoices,
    Parts,
    Penalties,
    choose,
    penalty,
    scores,
    weigh,
)
from hybridrl.trainer.places import Packing


class Router:
    """Computes for one module `gate`, whose weight it uses. Implements experts.RouterOfTokens."""

    packing: Packing

    def __init__(
        self,
        gate: nn.Module,
        model: ModelSpec,
        layer_number: int,
        *,
        context: dist.ProcessGroup,
        counts: bool,
        device: torch.device,
    ) -> None:
        """
        Args:
            context: ranks that share every sequence.
            counts: this rank counts its tokens. Of the ranks that route the same tokens, one does.
            device: where hidden states are; the weight may be elsewhere between two passes.
        """
        self._gate, self._model, self._context, self._counts = gate, model, context, counts
        self.layer_number, self.topk = layer_number, model.experts_per_token
        self.choices: Choices | EngineChoices | None = None
        self.penalties = Penalties()
        self._counted: Packing | None = None
        """Packing of the microbatch that was counted last: recomputation passes it again."""

        self._device = device
        self.count_from_zero()

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, self._gate.weight)

    def count_from_zero(self) -> None:
        self.count_E = torch.zeros(self._model.num_experts, device=self._device)
        self.penalty = torch.zeros((), device=self._device)

    def own(self, value_T: Tensor) -> Tensor:
        """All of it: every rank routes all of its tokens."""
        return value_T

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What transformers' routers return: logits [T, E], weights and experts of each token [T, K]."""
        logits_TE = F.linear(hidden.flatten(0, -2), self.weight)
        score_TE = scores(self._model, logits_TE)
        chosen_TK = choose(self._model, score_TE.detach(), None)
        if self.choices is not None:
            chosen_TK = self.choices.settle(self.packing.source_T, chosen_TK)
        weight_TK = weigh(self._model, score_TE, chosen_TK)
        if torch.is_grad_enabled():
            weight_TK = self._observe(weight_TK, logits_TE, score_TE, chosen_TK)
        return logits_TE, weight_TK.to(logits_TE.dtype), chosen_TK

    def _observe(self, weight_TK: Tensor, logits_TE: Tensor, score_TE: Tensor, chosen_TK: Tensor) -> Tensor:
        """Count chosen experts; returns the weights, with the auxiliary losses attached to their backward
        pass."""
        first, self._counted = self.packing is not self._counted, self.packing
        real_T = self.packing.source_T >= 0
        map_TE = torch.zeros_like(score_TE, dtype=torch.bool).scatter(1, chosen_TK, True)
        if first and self._counts:
            self.count_E += map_TE[real_T].sum(0)
        if self.penalties == Penalties():
            return weight_TK
        parts = Parts.of(self.packing, self._context.size())
        total = penalty(
            self.penalties,
            parts,
            parts.of_T[real_T],
            logits_TE[real_T],
            score_TE[real_T],
            map_TE[real_T],
            self._context,
        )
        if first and self._counts:
            self.penalty += total.detach()
        return cast(Tensor, _Attached.apply(weight_TK, total))


class _Attached(Function):
    """Weights that are passed on as they are; in the backward pass a loss gets a gradient of 1."""

    @staticmethod
    def forward(ctx: Any, weight_TK: Tensor, total: Tensor) -> Tensor:
        ctx.save_for_backward(total)
        return weight_TK.view_as(weight_TK)

    @staticmethod
    def backward(ctx: Any, grad_TK: Tensor) -> tuple[Tensor, Tensor]:
        (total,) = ctx.saved_tensors
        return grad_TK, torch.ones_like(total)


def replace_routers(
    layers: nn.ModuleList,
    model: ModelSpec,
    *,
    context: dist.ProcessGroup,
    counts: bool,
    device: torch.device,
) -> list[Router]:
    """Put our routers in the place of those of the layers with experts."""
    found = []
    for number in model.layers("moe"):
        gate: Any = layers[number].get_submodule("mlp.gate")
        gate.forward = Router(gate, model, number + 1, context=context, counts=counts, device=device)
        found.append(gate.forward)
    return found
