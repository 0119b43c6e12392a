"""A reward model that cannot judge the run's answers is refused, with what is missing."""

import json
from pathlib import Path
from typing import Any

import pytest

from hybridrl.config.load import load
from hybridrl.config.rules import RuleContext, check
from hybridrl.config.schema import RewardModelConfig
from hybridrl.models import spec as models
from hybridrl.models.spec import with_one_label

SIZES = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With policy, judge, and an unfit one of each kind."""
    made = {
        "policy": SIZES,
        "judge": with_one_label(SIZES),
        "short": with_one_label(SIZES) | {"max_position_embeddings": 1024},
        "labels": with_one_label(SIZES) | {"id2label": {"0": "good", "1": "bad"}},
        "strange": {**SIZES, "architectures": ["GPT2ForSequenceClassification"]},
    }
    for name, config in made.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "policy" / "chat_template.jinja").write_text("x")
    (tmp_path / "train.jsonl").write_text("{}\n")
    text = "model: {0}/policy\ndata: {{train: {0}/train.jsonl}}\nreward: exact_match\nrun: {{name: first}}\n"
    (tmp_path / "my.yaml").write_text(text.format(tmp_path))
    return tmp_path


@pytest.fixture
def run(folder: Path):
    def errors(*overrides: str, **facts: Any) -> list[str]:
        spec = models.read(folder / "policy")
        context = {"num_gpus": 0, "spec": spec} | facts
        overrides = tuple(text.replace("@", f"{folder}/") for text in overrides)
        found = check(load(folder / "my.yaml", overrides), RuleContext(**context))
        return [str(error).replace(f"{folder}/", "") for error in found]

    return errors


def test_a_fit_one_passes(run) -> None:
    assert run("reward_model=@judge") == []
    assert run("reward_model={path: @judge, weight: -0.5}", "reward=none") == []
    assert run("reward_model={path: @judge, parallel: {tp: 2, pp: 2}, microbatch_tokens: 4096}") == []
    assert run("reward_model=@judge", "algorithm.dynamic_sampling={}", "batch.max_lag=1") == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward=none"], "reward = none judges no answer, and neither reward_model nor environment is set"),
        (["reward_model=nowhere"], "no model folder at reward_model.path = nowhere"),
        (
            ["reward_model=@policy"],
            "the model policy has no score.weight: by its config.json it gives a vocabulary",
        ),
        (["reward_model=@labels"], "a model with 2 labels is no reward model"),
        (["reward_model=@strange"], "no model table for architecture GPT2ForCausalLM"),
        (["reward_model=@short"], "= 2048 is more than the 1024 positions of the reward model short"),
        (["reward_model={path: @judge, weight: 0}"], "reward_model.weight = 0: its score has no effect"),
        (
            ["reward_model={path: @judge, microbatch_tokens: 4096}"],
            "reward_model.microbatch_tokens = 4096 has no effect on the actor's ranks",
        ),
        (
            ["reward_model={path: @judge, parallel: {dp: 2}, microbatch_tokens: 100}"],
            "is more than reward_model.microbatch_tokens = 100",
        ),
        (
            ["reward_model={path: @judge, parallel: {dp: 1000}}"],
            "reward_model.parallel.dp = 1000 ranks share 512 trajectories of a step",
        ),
        (
            ["reward_model={path: @judge, parallel: {pp: 3}}"],
            "reward_model.parallel.pp = 3 does not divide the 4 layers of judge",
        ),
        (
            ["reward_model={path: @judge, parallel: {vpp: 2}}"],
            "reward_model.parallel.vpp = 2 chunks take turns",
        ),
        (["reward_model={path: @judge, parallel: {ep: 2}}"], "ep = 2 is for experts, and judge has none"),
    ],
)
def test_an_unfit_one_is_refused(run, overrides: list[str], message: str) -> None:
    (error,) = run(*overrides)
    assert message in error


def test_a_minibatch_may_have_fewer_answers_than_it_has_ranks(run) -> None:
    few = ("algorithm.samples_per_prompt=2", "batch={prompts_per_step: 8, minibatch_prompts: 1}")
    assert run("reward_model={path: @judge, parallel: {dp: 4}}", *few) == []


def test_its_gpus_are_counted(run) -> None:
    (error,) = run("reward_model={path: @judge, parallel: {tp: 4, dp: 4}}", num_gpus=8)
    assert error.startswith("reward_model.parallel needs 16 GPUs, there are 8")


def test_a_path_alone_is_the_short_form() -> None:
    assert RewardModelConfig.model_validate("folder") == RewardModelConfig(path="folder")
