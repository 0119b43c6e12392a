"""Judges and frozen players that a run could not ask are refused before it."""

import re

import pytest

from hybridrl.config.load import load
from hybridrl.launch.served_check import unfit_frozen, unfit_judges
from hybridrl.models.tiny import random_model

JUDGED = "reward={name: judge, prompt: '{response}'}"
TEXT = """\
model: m
data: {train: d.jsonl}
reward: exact_match
run: {name: r}
"""


@pytest.fixture
def errors(tmp_path):
    (tmp_path / "my.yaml").write_text(TEXT)
    random_model(tmp_path / "judge", "qwen3", 0)

    def run(*overrides):
        changed = [override.replace("FOLDER", str(tmp_path / "judge")) for override in overrides]
        loaded = load(tmp_path / "my.yaml", changed)
        return [str(error) for error in (*unfit_judges(loaded), *unfit_frozen(loaded))]

    return run


SIZES = "max_prompt_tokens: 32, max_response_tokens: 8"


def test_a_judge_that_fits_is_accepted(errors):
    assert errors() == []
    assert errors(JUDGED, f"judge={{path: FOLDER, {SIZES}}}") == []
    assert errors("reward={name: http, url: 'http://j/score'}") == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([JUDGED], "the section judge is not set"),
        ([f"judge={{path: FOLDER, {SIZES}}}"], "and no reward asks it"),
        ([JUDGED, "judge=absent/folder"], "no model folder at judge.path = absent/folder"),
        (
            [JUDGED, "judge={path: FOLDER, max_prompt_tokens: 1000000}"],
            "is more than the .* positions of judge",
        ),
        (
            [JUDGED, f"judge={{path: FOLDER, {SIZES}, kv_cache_tokens: 16}}"],
            "= 40 is more than judge.kv_cache_tokens = 16",
        ),
        ([JUDGED, f"judge={{path: FOLDER, {SIZES}, tp: 3}}"], "the model of judge: "),
        ([JUDGED, f"judge={{path: FOLDER, {SIZES}, engine: nothing}}"], "rollout has no 'nothing'"),
        (
            [JUDGED, f"judge={{path: FOLDER, {SIZES}, tp: 2}}", "cluster.gpus_per_node=1"],
            "judge.tp = 2, and a node has cluster.gpus_per_node = 1",
        ),
        (
            ["reward={name: http, url: 'http://j', key_variable: JUDGE_KEY}"],
            "key_variable = JUDGE_KEY, and reward.variables = .* lacks it",
        ),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused(errors, overrides, message):
    (only,) = errors(*overrides)
    assert re.search(message, only), only


GAME = ("environment={name: kuhn_poker, max_turns: 3}", "rollout.max_context_tokens=64")


def test_a_frozen_player_that_fits_is_accepted(errors):
    assert errors(*GAME, "frozen=FOLDER") == errors(*GAME, "frozen={path: FOLDER, agents: [0]}") == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["frozen=FOLDER"], "plays roles of an environment, and there is none"),
        ([*GAME, "frozen=absent/folder"], "no model folder at frozen.path = absent/folder"),
        (
            [*GAME, "rollout.max_context_tokens=100000", "frozen=FOLDER"],
            "rollout.max_context_tokens = 100000 is more than the .* positions of judge",
        ),
        (
            [*GAME, "frozen={path: FOLDER, kv_cache_tokens: 16}"],
            "rollout.max_context_tokens = 64 is more than frozen.kv_cache_tokens = 16",
        ),
    ],
)
def test_a_frozen_player_that_a_run_could_not_ask_is_refused(errors, overrides, message):
    (error,) = errors(*overrides)
    assert re.search(message, error)
