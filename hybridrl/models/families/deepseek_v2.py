"""DeepSeek-V2 and V2-Lite: latent attention, shared experts, a router without bias."""

from collections.abc import Mapping
from typing import Any

from hybridrl.errors import ModelError
from hybridrl.models.families import _mla as mla
from hybridrl.models.families import _moe as moe
from hybridrl.models.table import Family


def _traits(config: Mapping[str, Any]) -> dict[str, Any]:
    method = config.get("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy") or config.get("norm_topk_prob", False):
        raise ModelError(
            f"topk_method = {method} with norm_topk_prob = {config.get('norm_topk_prob', False)} "
            "is not supported",
            where="config.json",
            fix="use a model with greedy or group_limited_greedy, and norm_topk_prob = false",
        )
    groups = moe.router_groups(config) if method == "group_limited_greedy" else {}
    return mla.traits(config) | groups


FAMILY = Family(
    architecture="DeepseekV2ForCausalLM",
    rows=mla.ROWS,
    dp_attention=True,
    defaults={"n_shared_experts": 2, "q_lora_rank": 1536},
    traits=_traits,
)
