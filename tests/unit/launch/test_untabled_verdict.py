"""A model without a table is refused with the way that it has, or trained; plan and launch say the same."""

import shutil
from pathlib import Path

import pytest
from transformers import GraniteConfig, GraniteForCausalLM

from hybridrl.config.load import load
from hybridrl.hosts.machine import GIB, Machine
from hybridrl.launch.verdict import SCOPES, verdict
from hybridrl.models.tiny import olmo2_arithmetic, qwen3_arithmetic

TEXT = """\
model: untabled
data: {train: prompts.jsonl, chat_template: none}
reward: exact_match
algorithm: {preset: grpo}
rollout: {max_prompt_tokens: 16, max_response_tokens: 16}
run: {name: first}
"""
BARE = Machine(2, 64 * GIB, 64 * GIB, 8 * GIB, ())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("verdict")
    olmo2_arithmetic(made / "untabled", 0)
    write_scaled(made / "scaled")
    (made / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    (made / "my.yaml").write_text(TEXT)
    return made


def write_scaled(folder: Path) -> None:
    """A model whose logits are divided by a number that no tensor shows."""
    kind = GraniteConfig(
        vocab_size=16,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=32,
        logits_scaling=4.0,
        bos_token_id=None,
        eos_token_id=13,
        pad_token_id=14,
    )
    GraniteForCausalLM(kind).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder.parent / "untabled" / name, folder / name)


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def errors(*overrides: str) -> list[str]:
    loaded = load("my.yaml", overrides)
    found = [[str(e) for e in verdict(loaded, SCOPES[name], BARE).errors] for name in ("launch", "plan")]
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "there is no model table for olmo2, which Megatron's layers are built by"),
        (["actor.backend=fsdp"], ""),
        (["actor.backend=fsdp", "rollout.weight_path=engine_api"], ""),
        (["actor.backend=fsdp", "rollout.weight_path=in_place"], "can only go through the engine's loader"),
        (["actor={backend: fsdp, lora: {rank: 4}}"], "lora"),
    ],
)
def test_a_model_without_a_table_has_one_way(overrides: list[str], message: str) -> None:
    found = errors(*overrides)
    assert bool(found) == bool(message)
    assert message in "\n".join(found)


def test_megatron_has_nothing_to_gather(folder: Path) -> None:
    qwen3_arithmetic(folder / "qwen3", 0)
    (error,) = errors("model=qwen3", "actor.gather=once")
    assert "actor.gather = once: Megatron's ranks have their weights whole" in error
    assert errors("model=qwen3", "actor={backend: fsdp, gather: once}") == []


def test_megatron_keeps_nothing_on_the_host(folder: Path) -> None:
    qwen3_arithmetic(folder / "qwen3", 0)
    (error,) = errors("model=qwen3", "actor.keep_on_host=all")
    assert "actor.keep_on_host = all: Megatron's ranks train from GPU memory only" in error
    assert errors("model=qwen3", "actor={backend: fsdp, keep_on_host: all}") == []


def test_a_model_that_the_packed_pass_does_not_compute_is_refused() -> None:
    (error,) = errors("model=scaled", "actor.backend=fsdp")
    assert "are not what its GraniteForCausalLM computes" in error
