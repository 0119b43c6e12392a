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
    rows=(_EMBED, *gemma.LAYERS),
    activation=gemma.ACTIVATION,
    traits=_traits,
)
