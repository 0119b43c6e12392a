"""Gemma 2: soft caps in attention and output layer, a window on every other layer."""

from collections.abc import Mapping
from typing import Any

from hybridrl.models.families import _dense as dense
from hybridrl.models.families import _gemma as gemma
from hybridrl.models.table import Family


def _traits(config: Mapping[str, Any]) -> dict[str, Any]:
    return gemma.traits(config, full_every=2) | {
        "attention_soft_cap": config.get("attn_logit_softcapping", 50.0),
        "output_soft_cap": config.get("final_logit_softcapping", 30.0),
    }


FAMILY = Family(
    architecture="Gemma2ForCausalLM",
    rows=(dense.EMBED, *gemma.LAYERS),
    activation=gemma.ACTIVATION,
    defaults={"num_key_value_heads": 4},
    traits=_traits,
)
