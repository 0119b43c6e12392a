"""Qwen2.5-VL: the text model is Qwen2, which has rotary angles along three axes."""

from collections.abc import Mapping
from typing import Any

from hybridrl.models.families import _dense as dense
from hybridrl.models.families._multimodal import three_axes
from hybridrl.models.families._vision import qwen2_5_tower
from hybridrl.models.families.qwen2 import FAMILY as QWEN2
from hybridrl.models.table import Family, Tower


def _traits(config: Mapping[str, Any]) -> dict[str, Any]:
    return QWEN2.traits(config) | three_axes(config, default=(16, 24, 24), interleaved=False)


FAMILY = Family(
    architecture="Qwen2_5_VLForConditionalGeneration",
    rows=dense.ROWS,
    defaults={**QWEN2.defaults, "rope_theta": 1000000.0},
    traits=_traits,
    tower=Tower(
        parameters=qwen2_5_tower,
        defaults={
            "depth": 32,
            "hidden_size": 3584,
            "intermediate_size": 3420,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
        },
        mean=(0.48145466, 0.4578275, 0.40821073),  # CLIP's
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
)
