"""Dense Qwen3-VL: the text model is Qwen3, which has rotary angles along three axes and takes features of
earlier tower layers on its first layers."""

from collections.abc import Mapping
from typing import Any

from hybridrl.models.families import _dense as dense
from hybridrl.models.families._multimodal import in_language_model, three_axes
from hybridrl.models.families._vision import qwen3_tower
from hybridrl.models.families.qwen3 import FAMILY as QWEN3
from hybridrl.models.table import Family, Tower


def _traits(config: Mapping[str, Any]) -> dict[str, Any]:
    return QWEN3.traits(config) | three_axes(config, default=(24, 20, 20), interleaved=True)


FAMILY = Family(
    architecture="Qwen3VLForConditionalGeneration",
    rows=in_language_model(dense.ROWS),
    defaults={"num_key_value_heads": 32, "rope_theta": 500000.0},
    traits=_traits,
    tower=Tower(
        parameters=qwen3_tower,
        defaults={
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "out_hidden_size": 3584,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": (8, 16, 24),
        },
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
)
