"""Megatron's router, replaced: trainer/experts.py says which experts a token goes to.

Shape letters: N tokens that this rank routes (T / tp with sequence parallelism), E experts of a layer, K
experts chosen for a token.
"""

from typing import Any

import torch
from megatron.core.transformer.moe import router as megatron
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from hybridrl.models.spec import ModelSpec
from hybridrl.trainer.experts import (
    Choices,
    EngineChoices,
    Parts,
    Penalties,
    choose,
    copies_of_tokens,
    penalty,
    scores,
    weigh,
)
from hybridrl.trainer.places import Packing


class Router(megatron.Router):
    """Replaces Megatron's router, which supports neither DeepSeek-V2's groups nor packed sequences."""

    packing: Packing
    """Packing of the present microbatch, set by DecoderLayer."""

    def __init__(
        self, config: TransformerConfig, pg_collection: Any, *, model: ModelSpec, **options: Any
    ) -> None:
        """
        Args:
            options: further arguments of some releases of Megatron; 0.19 passes whether the layer belongs to
                multi-token prediction.
        """
        super().__init__(config, pg_collection, **options)
        self._model, self.topk = model, model.experts_per_token
        bias = torch.nn.Parameter(torch.zeros(self.num_experts), requires_grad=False)
        self.register_parameter("expert_bias", bias if model.router_bias else None)
        self.choices: Choices | EngineChoices | None = None
        self.penalties = Penalties()
        """Auxiliary losses that are added in passes with gradients."""

        self.count_from_zero()

    def count_from_zero(self) -> None:
        self.count_E = torch.zeros(self.num_experts, device=self.weight.device)
        """Tokens that went to each expert in passes with gradients."""

        self.penalty = torch.zeros((), device=self.weight.device)
        """Sum of the auxiliary losses in passes with gradients."""

    def _apply(self, *args: Any, **options: Any) -> Any:
        """Cast and move the module, but keep the bias in fp32: rounding it would choose other experts."""
        super()._apply(*args, **options)
        if self.expert_bias is not None:
            self.expert_bias.data = self.expert_bias.data.float()
        return self

    def forward(self, input: Tensor, padding_mask: None = None) -> tuple[Tensor, Tensor]:
        """Weight of every expert for every token, 0 if it was not chosen, and whether it was; [N, E] each."""
        return self.routing(self.gating(input))

    def routing(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The result of `forward`, from the output of the router's linear layer, [..., E]."""
        logits_NE = logits.flatten(0, -2)
        score_NE = scores(self._model, logits_NE)
        chosen_NK = choose(self._model, score_NE.detach(), self.expert_bias)
        if self.choices is not None:
            copies = copies_of_tokens(self.packing, self.cp_group.size())
            chosen_NK = self.choices.settle(
                self.own(self.packing.source_T), chosen_NK, [self.own(copy_T) for copy_T in copies]
            )
        weight_NE = torch.zeros_like(score_NE).scatter(1, chosen_NK, weigh(self._model, score_NE, chosen_NK))
        map_NE = torch.zeros_like(score_NE, dtype=torch.bool).scatter(1, chosen_NK, True)
        if torch.is_grad_enabled():  # with recomputation, only in the second of the two forward passes
            weight_NE = self._observe(weight_NE, logits_NE, score_NE, map_NE)
        return weight_NE, map_NE

    def _observe(self, weight_NE: Tensor, logits_NE: Tensor, score_NE: Tensor, map_NE: Tensor) -> Tensor:
        """Count chosen experts, for each answer that a token belongs to; returns the weights, with the
        auxiliary losses attached to their backward pass."""
        real_N = self.own(self.packing.source_T) >= 0
        if self.penalties == Penalties() and not self.packing.shared:
            self.count_E += map_NE[real_N].sum(0)
            return weight_NE
        parts = Parts.of(self.packing, self.cp_group.size())
        part_N = self.own(parts.of_T)[real_N]
        self.count_E += parts.answers_of(part_N) @ map_NE[real_N].float()
        if self.penalties == Penalties():
            return weight_NE
        total = penalty(
            self.penalties,
            parts,
            part_N,
            logits_NE[real_N],
            score_NE[real_N],
            map_NE[real_N],
            self.tp_cp_group,
        )
        self.penalty += total.detach()
        return MoEAuxLossAutoScaler.apply(weight_NE, total)

    def own(self, value_T: Tensor) -> Tensor:
        """This rank's part of a tensor over T under sequence parallelism, otherwise all of it."""
        if not self.config.sequence_parallel:
            return value_T
        return value_T.chunk(self.tp_group.size())[self.tp_group.rank()]
