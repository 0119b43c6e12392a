"""actor.share_prompts is refused by name where no attention can do it, and taken elsewhere."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from picture_specs import small_tower

from hybridrl.config.load import load, load_as
from hybridrl.config.rules import RuleContext, check
from hybridrl.config.sft_rm import SFTConfig
from hybridrl.errors import ConfigError
from hybridrl.layout.trainers import layout_of
from hybridrl.models.make import spec_of_made

SPEC = spec_of_made("hybridrl.models.tiny:qwen3_arithmetic", 0, where="model.make")
EXPERTS = spec_of_made("hybridrl.models.tiny:qwen3_moe_arithmetic", 0, where="model.make")
PICTURES = replace(SPEC, vision=small_tower())


@pytest.fixture
def said(tmp_path: Path):
    """What is said about actor.share_prompts in a config with these overrides."""
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    file = tmp_path / "my.yaml"
    data = {"train": str(tmp_path / "train.jsonl")}
    config = {"model": str(tmp_path / "model"), "data": data, "run": {"name": "first"}}

    def errors(*overrides: str, kind: Any = None, **facts: Any) -> list[str]:
        given = config if kind else config | {"reward": "exact_match"}
        file.write_text(json.dumps(given))
        words = ["actor.share_prompts=true", *overrides]
        loaded = load_as(kind, str(file), words) if kind else load(file, words)
        context = RuleContext(**({"num_gpus": 0, "spec": SPEC} | facts))
        return [str(e) for e in check(loaded, context) if "share_prompts" in str(e)]

    return errors


def test_models_on_a_cpu_may_share_prompts(said) -> None:
    assert said() == []
    assert said(spec=replace(SPEC, kv_lora_rank=8)) == []
    assert said("actor.moe={aux_loss: 0.1, router_replay: rollout}", spec=EXPERTS) == []
    assert said("actor.parallel={tp: 2, pp: 2, cp: 2, dp: 2}", "algorithm.samples_per_prompt=16") == []


@pytest.mark.parametrize(
    ("overrides", "facts", "message"),
    [
        (["algorithm.samples_per_prompt=1"], {}, "shares nothing with algorithm.samples_per_prompt = 1"),
        (["cluster.gpus_per_node=8"], {}, "actor.share_prompts with 8 GPUs: Transformer Engine's"),
        ([], {"num_gpus": 1}, "actor.share_prompts with 1 GPU: Transformer Engine's"),
        ([], {"spec": PICTURES}, "whose prompts may have pictures"),
    ],
)
def test_what_cannot_share_them_is_refused(said, overrides, facts, message) -> None:
    [error] = said(*overrides, **facts)
    assert message in error and "remove actor.share_prompts" in error


def test_examples_share_no_prompts(said) -> None:
    assert said(kind=SFTConfig)[0].startswith("actor.share_prompts is for several answers to a prompt")


def test_other_backends_refuse_it() -> None:
    from hybridrl.config.training import ActorConfig

    actor = ActorConfig(backend="fsdp", share_prompts=True)
    with pytest.raises(ConfigError, match="attention of actor.backend = fsdp reads whole sequences"):
        layout_of("fsdp").refuse_options(actor)
    layout_of("megatron").refuse_options(ActorConfig(share_prompts=True))
