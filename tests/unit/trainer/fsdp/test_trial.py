"""A model without a table is trained only if one packed pass computes what transformers does."""

from typing import Any

import pytest
import torch

from hybridrl.errors import ModelError
from hybridrl.trainer.fsdp.trial import difference, refuse_other_function

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}
NAMES = {
    "olmo2": "Olmo2ForCausalLM",
    "mistral": "MistralForCausalLM",
    "granite": "GraniteForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "cohere": "CohereForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "gemma": "GemmaForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}


def config(kind: str, **changes: Any) -> dict[str, Any]:
    return {"architectures": [NAMES[kind]], "model_type": kind, **SIZES, **changes}


@pytest.mark.parametrize(
    "made",
    [
        config("olmo2"),
        config("olmo2", attention_dropout=0.3, tie_word_embeddings=True),
        config("mistral", sliding_window=128),
        config("olmo3", layer_types=[*["sliding_attention"] * 5, "full_attention"]),
        config("granite"),
        config("glm4", head_dim=8),
        config("smollm3", no_rope_layers=[1, 1, 1, 0, 1, 1]),
    ],
    ids=lambda made: made["model_type"],
)
def test_a_packed_pass_is_transformers(made: dict[str, Any]) -> None:
    assert difference(made) < 5e-6
    refuse_other_function(made, where="model")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (config("granite", logits_scaling=8.0), "are not what its GraniteForCausalLM computes"),
        (config("cohere"), "are not what its CohereForCausalLM computes"),
        (config("stablelm"), "StableLmForCausalLM does not compute packed sequences: .*runs"),
        (config("gemma"), "GemmaModel has buffers that no checkpoint has: embed_tokens.embed_scale"),
    ],
    ids=lambda made: made["model_type"] if isinstance(made, dict) else "",
)
def test_another_function_is_refused(made: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        refuse_other_function(made, where="my.yaml:2")
    assert caught.value.where == "my.yaml:2" and "table" in caught.value.fix


def test_a_trial_changes_no_random_numbers() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again = difference(config("olmo2")), difference(config("olmo2"))
    assert first == again
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
