"""Latent attention does what its specification and its angles say, whatever release of Megatron is below."""

import hybridrl.trainer.megatron  # noqa: F401  # isort: skip  # makes Megatron importable on a CPU

from types import SimpleNamespace
from typing import Any

import pytest
import te_standins
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.multi_latent_attention import MLASelfAttention

from hybridrl.trainer.megatron import layers
from hybridrl.trainer.megatron.parts import MEGATRONS, LayerParts

HOSTS = {"cpu": MEGATRONS, "gpu": te_standins.STANDINS}


def places(parts: LayerParts) -> Any:
    """What the specification of a layer has at the places of its attention."""
    found = SimpleNamespace()
    layers._place_latent(found, parts)
    return found


@pytest.mark.parametrize("host", HOSTS)
def test_norms_are_built_where_the_specification_has_them(host, monkeypatch) -> None:
    """A release of Megatron that chooses by config.qk_layernorm, which is off, would build none or refuse."""

    def chosen_by_config(attention: Any, submodules: Any) -> dict[str, Any]:
        return {"q_layernorm": IdentityOp, "kv_layernorm": IdentityOp}

    monkeypatch.setattr(MLASelfAttention, "_resolve_qk_norm_config", chosen_by_config, raising=False)
    parts = HOSTS[host]
    own = parts.latent_attention
    built = own._resolve_qk_norm_config(own.__new__(own), places(parts))
    norm, wide = (IdentityOp, parts.norm_column) if parts.norm_column else (parts.norm, parts.column)
    assert built == {
        "linear_q_proj": parts.column,
        "linear_q_up_proj": wide,
        "linear_kv_up_proj": wide,
        "q_layernorm": norm,
        "kv_layernorm": norm,
    }
