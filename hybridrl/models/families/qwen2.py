"""Qwen2 and Qwen2.5: q, k and v always have a bias, the output projection never has one."""

from collections.abc import Mapping
from typing import Any

from hybridrl.models.families import _dense as dense
from hybridrl.models.table import Family


def _traits(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"qkv_bias": True, "attention_out_bias": False, "qk_norm": False}


FAMILY = Family(
    architecture="Qwen2ForCausalLM",
    rows=dense.ROWS,
    defaults={"num_key_value_heads": 32},
    traits=_traits,
)
