"""Latent attention does what its specification and its angles say, whatever release of Megatron is below."""

import hybridrl.trainer.megatron  # noqa: F401  # isort: skip  # makes Megatron importable on a CPU

from types import SimpleNamespace
from typing import Any

import pytest
import te_standins
import torch
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from model_values import tiny
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave

from hybridrl.trainer.megatron import layers
from hybridrl.trainer.megatron.mla import LatentAttention
from hybridrl.trainer.megatron.parts import MEGATRONS, LayerSpecs
from hybridrl.trainer.megatron.rope import PackedRotary

HOSTS = {"cpu": MEGATRONS, "gpu": te_standins.STANDINS}


def places(parts: LayerSpecs) -> Any:
    """What the specification of a layer has at the places of its attention."""
    found = SimpleNamespace()
    layers._place_latent(found, parts)
    return found


@pytest.mark.parametrize("by_config", [True, False])
def test_heads_turn_as_in_transformers_whatever_megatron_takes_the_order_of_dims_from(by_config) -> None:
    """Releases of Megatron differ: config.multi_latent_attention, or an argument that is off by default."""
    tokens, heads, dim, amplitude = 5, 3, 8, 1.25
    generator = torch.Generator().manual_seed(2)
    query, key = torch.randn(2, tokens, 1, heads, dim, generator=generator)
    spec = tiny("deepseek_v3", rope_head_dim=dim)
    rotary = PackedRotary(spec)
    angle_T = rotary(SimpleNamespace(position_T=torch.arange(tokens)))
    config = SimpleNamespace(
        multi_latent_attention=by_config, apply_rope_fusion=False, rotary_interleaved=False
    )
    attention = SimpleNamespace(config=config, rotary_pos_emb=SimpleNamespace(amplitude=amplitude))
    turned = [LatentAttention._turn(attention, x, angle_T) for x in (query, key)]

    batched = [x.permute(1, 2, 0, 3) for x in (query, key)]  # [1, heads, tokens, dim]
    cos, sin = (amplitude * wave[:, 0, 0].unsqueeze(0) for wave in (angle_T.cos(), angle_T.sin()))
    expected = apply_rotary_pos_emb_interleave(*batched, cos, sin)
    for found, one in zip(turned, expected, strict=True):
        torch.testing.assert_close(found.permute(1, 2, 0, 3), one)


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
