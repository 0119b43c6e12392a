"""Gemma 3, text only: Gemma 2 with RMS norms on q and k, and without soft caps in the attention.

One layer in six has no window and has a larger rotary base. SGLang gives every rank the whole embedding,
unpadded.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hybridrl.models.families import _dense as dense
from hybridrl.models.families import _gemma as gemma
from hybridrl.models.table import Family, Site

_EMBED = replace(dense.EMBED, engine=(Site("model.embed_tokens.weight", "whole"),), vllm=dense.EMBED.engine)


def _traits(config: Mapping[str, Any]) -> dict[str, Any]:
    return gemma.traits(config, full_every=6) | {
        "qk_norm": True,
        "output_soft_cap": config.get("final_logit_softcapping"),
        "window_rope_theta": _window_rope_theta(config),
    }


def _window_rope_theta(config: Mapping[str, Any]) -> float:
    kinds = config.get("rope_parameters") or {}
    named = kinds.get("sliding_attention") or {}
    return float(named.get("rope_theta") or config.get("rope_local_base_freq") or 10000.0)


FAMILY = Family(
    architecture="Gemma3ForCausalLM",
    rows=(_EMBED, *gemma.LAYERS),
    activation=gemma.ACTIVATION,
    defaults={"num_key_value_heads": 4, "rope_theta": 1e6},
    traits=_traits,
)
