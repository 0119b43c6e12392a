"""The vision tower of the policy: transformers' module, whole on every rank of the first pipeline stage.

Features of pictures take the places of their placeholders among the hidden states, wherever packing, context
and sequence parallelism have put them. Each picture of a microbatch is encoded once; samples that show it
share its features, whose gradients are summed.
Shape letters: T packed tokens of this rank, P places of this rank that show a picture, F features of the
microbatch, H hidden size.
"""

import json
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from hybridrl.models.spec import ModelSpec
from hybridrl.models.vision import VisionSpec
from hybridrl.trainer.tower import Mode, is_trained


def build_tower(spec: ModelSpec, config: TransformerConfig, mode: Mode) -> torch.nn.Module:
    """The tower of a model, with the names of transformers' module.

    Args:
        mode: which of its parameters are trained.
    """
    assert spec.vision is not None
    tower = _module(spec.family, spec.vision, config.params_dtype)
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(is_trained(name, mode))
        # Under sequence parallelism each rank has the gradient of its own tokens; Megatron sums these.
        parameter.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]
    if config.recompute_granularity == "full":
        recomputed: Any = tower
        recomputed.gradient_checkpointing_enable({"use_reentrant": False})
    return tower


def _module(family: str, vision: VisionSpec, dtype: torch.dtype) -> torch.nn.Module:
    import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl as qwen2_5
    import transformers.models.qwen3_vl.modeling_qwen3_vl as qwen3
    import transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe as qwen3_moe

    kinds: dict[str, Any] = {
        "qwen2_5_vl": qwen2_5.Qwen2_5_VisionTransformerPretrainedModel,
        "qwen3_vl": qwen3.Qwen3VLVisionModel,
        "qwen3_vl_moe": qwen3_moe.Qwen3VLMoeVisionModel,
    }
    kind = kinds[family]
    config = kind.config_class(**json.loads(vision.config))
    return kind._from_config(config, dtype=dtype, attn_implementation="sdpa")


def keep_frequencies(tower: torch.nn.Module) -> None:
    """Give a tower that was cast to half precision its rotary frequencies in fp32 again."""
    rotary: Any = tower.rotary_pos_emb
    frequencies, _ = rotary.compute_axial_rope_parameters(rotary.config)
    for name in ("inv_freq", "original_inv_freq"):
        if hasattr(rotary, name):
            setattr(rotary, name, frequencies.to(getattr(rotary, name).device))


class Placed:
    """Features of the pictures of a microbatch, and where they belong among this rank's hidden states."""

    def __init__(
        self, feature_T: Tensor, features_FH: Tensor, deep: Sequence[Tensor], *, sequence_parallel: bool
    ) -> None:
        """
        Args:
            feature_T: row of the features that each token shows; -1 for text.
            deep: features that are added to the outputs of the first layers, [F, H] each.
        """
        if sequence_parallel:
            size = parallel_state.get_tensor_model_parallel_world_size()
            feature_T = feature_T.chunk(size)[parallel_state.get_tensor_model_parallel_rank()]
        self._place_P = (feature_T >= 0).nonzero().flatten()
        self._row_P = feature_T[self._place_P]
        # Layers add detached leaves, and `_Join` hands their gradients to the tower in one backward pass of
        # it. With recomputation each layer would walk the tower's graph otherwise.
        self._leaves = [one.detach().requires_grad_(one.requires_grad) for one in deep]
        self._features_FH = _Join.apply(self._leaves, features_FH, *deep) if deep else features_FH

    def put(self, hidden_T1H: Tensor) -> Tensor:
        """Hidden states with the features in the places of their tokens."""
        own_P1H = self._features_FH.index_select(0, self._row_P).unsqueeze(1)
        return hidden_T1H.index_copy(0, self._place_P, own_P1H.to(hidden_T1H.dtype))

    def add(self, hidden_T1H: Tensor, layer: int) -> Tensor:
        """Hidden states after a layer, with the features added that belong there (DeepStack)."""
        if layer >= len(self._leaves):
            return hidden_T1H
        own_P1H = self._leaves[layer].index_select(0, self._row_P).unsqueeze(1)
        return hidden_T1H.index_add(0, self._place_P, own_P1H.to(hidden_T1H.dtype))


class _Join(torch.autograd.Function):
    """The features as they are. Its backward pass runs after those of all layers, which have left the
    gradients of the deep features in the leaves by then."""

    @staticmethod
    def forward(ctx: Any, leaves: Sequence[Tensor], features_FH: Tensor, *deep: Tensor) -> Tensor:
        ctx.leaves = leaves
        return features_FH.clone()

    @staticmethod
    def backward(ctx: Any, grad_FH: Tensor) -> tuple[Tensor | None, ...]:
        of_deep = (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in ctx.leaves)
        return None, grad_FH, *of_deep
