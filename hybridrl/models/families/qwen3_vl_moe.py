"""Qwen3-VL with experts: the text model is Qwen3 with experts, the tower that of the dense Qwen3-VL.

Its router always normalizes the weights of the experts that it has chosen.
"""

from collections.abc import Mapping
from typing import Any

from hybridrl.errors import ModelError
from hybridrl.models.families._multimodal import in_language_model, three_axes
from hybridrl.models.families.qwen3_moe import FAMILY as QWEN3_MOE
from hybridrl.models.families.qwen3_vl import FAMILY as QWEN3_VL
from hybridrl.models.table import Family


def _traits(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("norm_topk_prob") is False:
        raise ModelError(
            "norm_topk_prob = false is not supported: transformers would normalize all the same",
            where="config.json",
            fix="remove norm_topk_prob",
        )
    axes = three_axes(config, default=(24, 20, 20), interleaved=True)
    return QWEN3_MOE.traits(config) | axes | {"router_normalizes": True}


FAMILY = Family(
    architecture="Qwen3VLMoeForConditionalGeneration",
    rows=in_language_model(QWEN3_MOE.rows),
    defaults={
        "num_key_value_heads": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "rope_theta": 500000.0,
    },
    traits=_traits,
    tower=QWEN3_VL.tower,
    fused_experts=True,
)
