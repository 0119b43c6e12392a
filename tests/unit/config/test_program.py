"""Keys of programs: what they are refused for, and what their branches must not be combined with."""

import pytest
from rule_values import refusals

from hybridrl.algorithms.rules import SEQUENCE_LOSSES, algorithm_fits_the_run
from hybridrl.config.rules.reward_model_rules import reward_model_fits_the_run
from hybridrl.config.rules.turns import one_plays_the_episodes, turns_fit_the_context
from hybridrl.errors import ConfigErrors
from hybridrl.registry import names

TEXT = """\
model: m
data: {train: d.jsonl}
reward: none
program: {command: [python, agent.py]}
algorithm: {aggregate: token_mean}
rollout: {max_prompt_tokens: 16, max_response_tokens: 8, max_context_tokens: 64}
run: {name: r}
"""


@pytest.fixture
def errors(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(TEXT)

    def run(*overrides):
        rules = (
            one_plays_the_episodes,
            turns_fit_the_context,
            reward_model_fits_the_run,
            algorithm_fits_the_run,
        )
        return refusals(path, overrides, rules)

    return run


def test_a_program_is_enough(errors):
    assert errors() == []
    assert errors("program=[python, agent.py]", "algorithm.estimator=rloo") == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["environment=guess"], "environment = guess and program.command = python agent.py"),
        (["rollout.max_context_tokens=null"], "max_context_tokens does not say how long it may be"),
        (["rollout.max_context_tokens=23"], "does not hold an opening of rollout.max_prompt_tokens = 16"),
        (["algorithm.aggregate=seq_mean_token_mean"], "aggregate = seq_mean_token_mean is a mean over seq"),
        (["algorithm.loss={name: ppo_clip, level: sequence}"], "loss ppo_clip has a value for a whole seq"),
        (["algorithm.loss=topr"], "loss topr has a value for a whole sequence"),
        (["algorithm.estimator=gigpo"], "estimator gigpo compares tokens or turns"),
    ],
)
def test_contradictions_are_refused(errors, overrides, message):
    assert message in "\n".join(errors(*overrides))


def test_an_episode_of_one_conversation_may_have_any_algorithm(errors):
    one = "program.branches=refuse"
    assert errors(one, "algorithm.aggregate=seq_mean_token_mean") == []
    assert errors(one, "algorithm.loss=gmpo", "algorithm.aggregate=seq_mean_token_mean") == []
    assert errors(one, "algorithm.estimator=step_reinforce") == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("program.command=[]", "command is empty"),
        ("program.branches=drop", "branches"),
    ],
)
def test_values_that_mean_nothing_are_refused(errors, override, message):
    with pytest.raises(ConfigErrors, match=message):
        errors(override)


def test_losses_over_a_sequence_are_those_that_import_its_means():
    """A new policy loss of that kind has to be in the list too."""
    from importlib import import_module
    from pathlib import Path

    package = "hybridrl.algorithms.policy_losses"
    folder = Path(str(import_module(package).__path__[0]))
    uses = {n for n in names(package) if "algorithms.sequences import" in (folder / f"{n}.py").read_text()}
    by_option = {"ppo_clip", "cispo"}  # their option `level` says it
    assert uses - by_option == SEQUENCE_LOSSES
