"""The length at which attention costs as much as the weights, against the formula of a plain transformer."""

import pytest
from model_values import tiny

from hybridrl.models.cost import attention_length


def plain(hidden, **changes):
    """Attention of full width and a feed-forward of 8/3: 12 hidden^2 weights a layer."""
    return tiny(
        "llama",
        hidden_size=hidden,
        num_heads=4,
        num_kv_heads=4,
        head_dim=hidden // 4,
        ffn_size=hidden * 8 // 3,
        **changes,
    )


@pytest.mark.parametrize("hidden", [48, 2040])
def test_a_plain_transformer_has_twelve_times_its_width(hidden):
    assert attention_length(plain(hidden)) == pytest.approx(12 * hidden)


def test_neither_layers_nor_vocabulary_matter():
    assert attention_length(plain(48, num_layers=7, vocab_size=999)) == attention_length(plain(48))


def test_a_token_meets_only_the_experts_that_it_is_sent_to():
    two, four = (tiny("mixtral", num_experts=4, experts_per_token=k) for k in (2, 4))
    many = tiny("mixtral", num_experts=8, experts_per_token=2)
    assert attention_length(two) < attention_length(four)
    router = 2 * 4 * two.hidden_size / (two.num_heads * 2 * two.head_dim)
    assert attention_length(many) == pytest.approx(attention_length(two) + router)


def test_latent_attention_counts_the_sizes_of_its_heads():
    model = tiny("deepseek_v3")
    wider = tiny("deepseek_v3", v_head_dim=30)
    assert attention_length(wider) < attention_length(model)
