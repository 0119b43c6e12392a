"""DeepSeek-V3 and R1, and Kimi-K2, which is one of other sizes: V2 with a bias in the router.

The layers that predict further tokens, after the last one in a checkpoint, are left out: neither training nor
plain decoding uses them.
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


FAMILY = Family(architecture="DeepseekV3ForCausalLM", rows=mla.ROWS, dp_attention=True, traits=_traits)
