"""Norms and rotary embeddings of the CPU engine against those of SGLang that they replace."""

import pytest
import torch
from sglang.srt.layers.layernorm import GemmaRMSNorm, RMSNorm
from sglang.srt.layers.rotary_embedding import base
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

from hybridrl.rollout.sglang.operations import normalised, rotated

SIZE, HEAD_SIZE, POSITIONS = 48, 16, 64


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_is_cpu", True)  # as in an engine's processes


def refused(*args, **options):
    raise AssertionError("SGLang's own ran")


def norm(**options) -> RMSNorm:
    made = RMSNorm(SIZE, eps=1e-5, **options)
    made.weight.data = torch.randn(SIZE)
    return made


def rope(**options) -> RotaryEmbedding:
    given = {
        "head_size": HEAD_SIZE,
        "rotary_dim": HEAD_SIZE,
        "max_position_embeddings": POSITIONS,
        "base": 10000,
        "is_neox_style": True,
        "dtype": torch.float32,
    }
    return RotaryEmbedding(**given | options)


@pytest.mark.parametrize("shape", [(1, SIZE), (7, SIZE), (3, 4, SIZE)])
@pytest.mark.parametrize("options", [{}, {"cast_x_before_out_mul": True}, {"fp32_residual": True}])
def test_a_norm_is_sglangs_bit_for_bit(shape, options):
    torch.manual_seed(0)
    own, x, residual = norm(**options), torch.randn(shape), torch.randn(shape)
    strided = torch.randn(*shape[:-1], 2 * SIZE)[..., ::2]
    with torch.inference_mode():
        assert torch.equal(normalised(refused, own, x), own.forward_native(x))
        assert torch.equal(normalised(refused, own, strided), own.forward_native(strided))
        found, expected = normalised(refused, own, x, residual), own.forward_native(x, residual)
    assert all(map(torch.equal, found, expected))


def test_a_norm_leaves_its_inputs_alone():
    x, residual = torch.randn(3, SIZE), torch.randn(3, SIZE)
    copies = x.clone(), residual.clone()
    normalised(refused, norm(), x, residual)
    assert torch.equal(x, copies[0]) and torch.equal(residual, copies[1])


def test_other_norms_stay_sglangs():
    x = torch.randn(3, SIZE)
    for own, given in (
        (norm(var_hidden_size=SIZE // 2), (x,)),
        (norm(override_orig_dtype=torch.bfloat16), (x,)),
        (norm(), (x.bfloat16(),)),
        (norm(), (x, x, x)),
    ):
        found = normalised(RMSNorm.forward_native, own, *given)
        expected = own.forward_native(*given)
        pairs = zip(found, expected, strict=True) if len(given) > 1 else [(found, expected)]
        assert all(torch.equal(ours, theirs) and ours.dtype == theirs.dtype for ours, theirs in pairs)
    assert not issubclass(GemmaRMSNorm, RMSNorm), (
        "its weight is an offset from 1, and it has a forward_native"
    )


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_heads_are_turned_as_sglang_turns_them_bit_for_bit(tokens):
    torch.manual_seed(tokens)
    own, positions = rope(), torch.randint(0, POSITIONS, (tokens,))
    query, key, _ = torch.randn(tokens, 8 * HEAD_SIZE).split(
        [4 * HEAD_SIZE, 2 * HEAD_SIZE, 2 * HEAD_SIZE], -1
    )
    found = rotated(refused, own, positions, query, key)
    assert all(map(torch.equal, found, own.forward_native(positions, query, key)))


@pytest.mark.parametrize(
    "options", [{"is_neox_style": False}, {"rotary_dim": HEAD_SIZE // 2}, {"dtype": torch.bfloat16}]
)
def test_other_rotary_embeddings_stay_sglangs(options):
    own, positions, query = rope(**options), torch.arange(6), torch.randn(6, 2 * HEAD_SIZE)
    found = rotated(RotaryEmbedding.forward_native, own, positions, query, query)
    assert all(map(torch.equal, found, own.forward_native(positions, query, query)))


def test_offsets_of_positions_are_sglangs():
    own, positions, query = rope(), torch.arange(6), torch.randn(6, 2 * HEAD_SIZE)
    found = rotated(RotaryEmbedding.forward_native, own, positions, query, query, offsets=positions)
    assert all(map(torch.equal, found, own.forward_native(positions, query, query, offsets=positions)))
