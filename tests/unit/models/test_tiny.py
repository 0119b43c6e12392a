"""Models made on the spot: whole folders, one for one seed, that the Hugging Face library can read."""

import json

import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridrl.errors import ModelError
from hybridrl.models import spec
from hybridrl.models.tiny import ARITHMETIC, qwen3_arithmetic, random_model

FAMILIES = ["llama", "qwen2", "qwen3", "qwen3_moe"]


@pytest.fixture(scope="module")
def arithmetic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "arithmetic"
    qwen3_arithmetic(folder, 0)
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_one_seed_makes_one_model(arithmetic, tmp_path):
    qwen3_arithmetic(tmp_path / "same", 0)
    qwen3_arithmetic(tmp_path / "other", 1)
    name = "model.embed_tokens.weight"
    for file in arithmetic.iterdir():
        assert file.read_bytes() == (tmp_path / "same" / file.name).read_bytes()
    assert (weights(arithmetic)[name] != weights(tmp_path / "other")[name]).mean() > 0.99


def test_the_arithmetic_model_divides_over_two_ranks(arithmetic):
    model = spec.read(arithmetic)
    assert model.num_heads % 2 == model.num_kv_heads % 2 == model.ffn_size % 2 == model.vocab_size % 2 == 0


def test_an_untrained_model_has_an_open_mind(arithmetic):
    model = AutoModelForCausalLM.from_pretrained(arithmetic)
    with torch.no_grad():
        logits_V = model(torch.tensor([[3, 7, 10, 5, 12]])).logits[0, -1]
    assert torch.softmax(logits_V, -1).max() < 0.25


def test_every_character_of_arithmetic_is_a_token(arithmetic):
    tokenizer = AutoTokenizer.from_pretrained(arithmetic)
    ids = tokenizer(ARITHMETIC)["input_ids"]
    assert ids == list(range(len(ARITHMETIC)))
    assert tokenizer.decode(ids) == ARITHMETIC
    assert tokenizer("3?")["input_ids"] == [3, tokenizer.unk_token_id]
    assert tokenizer.decode([8, tokenizer.eos_token_id], skip_special_tokens=True) == "8"


def test_model_and_tokenizer_end_answers_with_the_same_token(arithmetic):
    ends = json.loads((arithmetic / "generation_config.json").read_text())["eos_token_id"]
    config = json.loads((arithmetic / "config.json").read_text())
    assert AutoTokenizer.from_pretrained(arithmetic).eos_token_id == ends == config["eos_token_id"]


def parameter(model, name):
    """The library keeps the experts of a layer in one tensor, gate above up."""
    if ".experts." not in name:
        return model.get_parameter(name)
    expert, matrix = name.split(".")[-3:-1]
    experts = model.get_submodule(name.partition(".experts.")[0] + ".experts")
    if matrix == "down_proj":
        return experts.down_proj[int(expert)]
    return experts.gate_up_proj[int(expert)].chunk(2)[matrix == "up_proj"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_the_hugging_face_library_finds_every_weight_of_a_random_model(family, tied, tmp_path):
    random_model(tmp_path / "model", family, 3, tied=tied, num_hidden_layers=3)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    assert model.config.model_type == family
    made = weights(tmp_path / "model")
    assert ("lm_head.weight" in made) != tied
    for name, weight in made.items():
        assert torch.equal(parameter(model, name), torch.from_numpy(weight)), name


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_weights_of_a_random_model_are_alike(family, tmp_path):
    random_model(tmp_path / "model", family, 3)
    for name, weight in weights(tmp_path / "model").items():
        assert weight.std() > 0.05, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_has_a_tokenizer_of_bytes_with_a_chat_template(family, tmp_path):
    random_model(tmp_path / "model", family, 3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "é = 2\n"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True)
    assert tokenizer.convert_ids_to_tokens(chat["input_ids"]) == ["<|user|>", "a", "<eos>", "<|assistant|>"]


def test_a_model_that_is_there_stays(tmp_path):
    random_model(tmp_path / "model", "llama", 3)
    before = weights(tmp_path / "model")["lm_head.weight"]
    random_model(tmp_path / "model", "llama", 4)
    assert (weights(tmp_path / "model")["lm_head.weight"] == before).all()


def test_nothing_is_left_of_a_model_that_cannot_be_made(tmp_path):
    with pytest.raises(ModelError, match=r"vocab_size = 8, the tokenizer has 262 tokens"):
        random_model(tmp_path / "model", "llama", 0, vocab_size=8)
    with pytest.raises(ModelError, match="no random model of family 'gpt2'"):
        random_model(tmp_path / "model", "gpt2", 0)
    with pytest.raises(ModelError, match="no size depth"):
        random_model(tmp_path / "model", "llama", 0, depth=8)
    assert not list(tmp_path.iterdir())
