"""DeepSeek-V3, DeepSeek-R1 and Kimi-K2 (same architecture, other sizes): V2 with a bias in the router.

The multi-token prediction layers at the end of a checkpoint are ignored; neither training nor plain decoding
uses them.
"""

from collections.abc import Mapping
from typing import Any

from hybridrl.models.families import _mla as mla
from hybridrl.models.families import _moe as moe
from hybridrl.models.table import Family


def _traits(config: Mapping[str, Any]) -> dict[str, Any]:
    router = {
        "router_score": "sigmoid",
        "router_bias": config.get("topk_method", "noaux_tc") == "noaux_tc",
        "router_normalizes": config.get("norm_topk_prob", True),
    }
    return mla.traits(config) | moe.router_groups(config) | router


FAMILY = Family(
    architecture="DeepseekV3ForCausalLM",
    rows=mla.ROWS,
    dp_attention=True,
    defaults={
        "n_shared_experts": 1,
        "q_lora_rank": 1536,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
    },
    traits=_traits,
)
