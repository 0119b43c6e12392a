"""Llama 1 to 3, and models that use its code (SmolLM2, ...)."""

from collections.abc import Mapping
from typing import Any

from hybridrl.errors import ModelError
from hybridrl.models.families import _dense as dense
from hybridrl.models.table import Family


def _traits(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("mlp_bias", False):
        raise ModelError(
            "mlp_bias = true is not supported",
            where="config.json",
            fix="use a model without biases in its MLP",
        )
    bias = config.get("attention_bias", False)
    return {"qkv_bias": bias, "attention_out_bias": bias, "qk_norm": False}


FAMILY = Family(
    architecture="LlamaForCausalLM",
    rows=dense.ROWS,
    traits=_traits,
)
