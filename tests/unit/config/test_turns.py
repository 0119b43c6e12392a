"""Budgets of tokens and turns that contradict each other, or that nothing has a use for, are refused."""

import pytest
from rule_values import refusals

from hybridrl.config.rules.turns import heldout_answers_fit_the_engine, turns_fit_the_context
from hybridrl.errors import ConfigErrors

TEXT = """\
model: m
data: {train: d.jsonl}
reward: exact_match
environment: {name: guess, max_turns: 4}
rollout: {max_prompt_tokens: 16, max_response_tokens: 8, max_context_tokens: 64}
run: {name: r}
"""


@pytest.fixture
def errors(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(TEXT)

    def run(*overrides):
        rules = (turns_fit_the_context, heldout_answers_fit_the_engine)
        return refusals(path, overrides, rules)

    return run


def test_fit_ones_pass(errors):
    assert errors() == []
    assert errors("rollout.max_context_tokens=24", "evaluate.max_turns=2") == []
    assert errors("environment=null", "rollout.max_context_tokens=null") == []


@pytest.mark.parametrize(
    ("overrides", "message", "fix"),
    [
        (
            ["rollout.max_context_tokens=null"],
            "an episode has up to 4 turns, and rollout.max_context_tokens does not say how long it may be",
            "rollout.max_context_tokens=48, and as many more",
        ),
        (
            ["environment=null"],
            "rollout.max_context_tokens = 64 is a budget of episodes, and there is no environment",
            "leave it out",
        ),
        (
            ["rollout.max_context_tokens=23"],
            "= 23 does not hold an opening of rollout.max_prompt_tokens = 16 and one answer",
            "48 holds all turns; 24 is the least",
        ),
        (
            ["environment.max_turns=50"],
            "= 64 does not hold an opening of rollout.max_prompt_tokens = 16 and one token for each of 50",
            "416 holds all turns; 66 is the least",
        ),
        (
            ["evaluate.max_response_tokens=9"],
            "evaluate.max_response_tokens = 9 is more than rollout.max_response_tokens = 8",
            "at most 8",
        ),
    ],
)
def test_unfit_ones_are_refused(errors, overrides, message, fix):
    (error,) = errors(*overrides)
    assert message in error and fix in error


def test_turns_of_an_evaluation_need_an_environment(errors):
    none = ("environment=null", "rollout.max_context_tokens=null")
    (error,) = errors(*none, "evaluate.max_turns=2")
    assert "evaluate.max_turns = 2 is a budget of episodes" in error


@pytest.mark.parametrize(
    ("key", "fix"), [("top_p", "evaluate.top_p is for evaluation"), ("grammar", "leave it")]
)
def test_sampling_from_a_part_of_the_distribution_is_refused_with_the_reason(errors, key, fix):
    with pytest.raises(ConfigErrors) as found:
        errors(f"rollout.{key}=0.5")
    text = str(found.value)
    assert f"there is no rollout.{key}: tokens that are trained on are sampled from the whole" in text
    assert fix in text


def test_ends_of_answers_are_lists(errors):
    assert errors('rollout.stop=["</search>"]', "rollout.stop_token_ids=[7, 8]") == []
