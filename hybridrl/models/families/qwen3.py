"""Dense Qwen3: RMS norm over the head dimension of q and k; biases only if the config sets them."""

from collections.abc import Mapping
from typing import Any

from hybridrl.models.families import _dense as dense
from hybridrl.models.table import Family


def _traits(config: Mapping[str, Any]) -> dict[str, Any]:
    bias = config.get("attention_bias", False)
    traits = {"qkv_bias": bias, "attention_out_bias": bias, "qk_norm": True}
    if config.get("head_dim") is None:
        traits["head_dim"] = 128
    return traits


FAMILY = Family(
    architecture="Qwen3ForCausalLM",
    rows=dense.ROWS,
    dp_attention=True,
    defaults={"num_key_value_heads": 32},
    traits=_traits,
)
