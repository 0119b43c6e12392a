"""Gemma 3, text only: Gemma 2 with RMS norm over the head dimension of q and k, and without soft caps.

SGLang gives every rank all of the embedding, unpadded.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hybridrl.models.families import _dense as dense
from hybridrl.models.families import _gemma as gemma
from hybridrl.models.table import Family, Site

_EMBED = replace(dense.EMBED, engine=(Site("model.embed_tokens.weight", "whole"),), vllm=dense.EMBED.engine)


def _traits(config: Mapping[str, Any]) -> dict[str, Any]:
    return gemma.traits(config) | {"qk_norm": True}


FAMILY = Family(
    architecture="Gemma3ForCausalLM",
    rows=(
        _EMBED,
        dense.ATTENTION_NORM,
        dense.QKV,
        dense.QKV_BIAS,
        dense.Q_NORM,
        dense.K_NORM,
        dense.ATTENTION_OUT,
        dense.ATTENTION_OUT_BIAS,
        gemma.POST_ATTENTION_NORM,
        gemma.FFN_NORM,
        dense.GATE_UP,
        dense.DOWN,
        gemma.POST_FFN_NORM,
        dense.FINAL_NORM,
    ),
    activation=gemma.ACTIVATION,
    traits=_traits,
)
