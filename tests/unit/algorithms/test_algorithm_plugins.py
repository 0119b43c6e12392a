"""Every mistake in naming a plug-in or its options is refused at its key; code from outside works the
same."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.plugins import build
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Rich:
    needs: ClassVar[frozenset[str]] = frozenset()
    limit: float | None = None
    sizes: tuple[int, ...] = ()
    way: Literal["up", "down"] = "up"
    required: int

    def __post_init__(self) -> None:
        if self.required < 0:
            raise ValueError(f"required = {self.required} is negative")


class Needy:
    needs: ClassVar[frozenset[str]] = frozenset({"old_logps"})


class ScalarLoss:
    needs: ClassVar[frozenset[str]] = frozenset({"length"})


def plain(reward_N, group_N):
    return reward_N


plain.needs = frozenset()


def silent(reward_N, group_N):
    return reward_N


def make(plugin: str, **options):
    return build("estimator", f"{__name__}:{plugin}", options, where="algorithm.estimator")


@pytest.mark.parametrize(
    "config,where,text",
    [
        ({"estimator": "grop"}, "algorithm.estimator", "grpo"),
        ({"estimator": {"name": "grpo", "epsilon": 1}}, "algorithm.estimator.epsilon", "eps"),
        ({"estimator": {"name": "grpo", "eps": "small"}}, "algorithm.estimator.eps", "a number"),
        (
            {"estimator": {"name": "grpo", "scale_by_std": 1}},
            "algorithm.estimator.scale_by_std",
            "true or false",
        ),
        ({"estimator": {"name": "dr_grpo", "eps": 1}}, "algorithm.estimator.eps", "none"),
        ({"estimator": "no_such_module:GRPO"}, "algorithm.estimator", "no_such_module"),
        ({"loss": "ppo_clp"}, "algorithm.loss", "ppo_clip"),
        ({"loss": {"name": "ppo_clip", "clip_low": -0.1}}, "algorithm.loss", "-0.1"),
        ({"loss": {"name": "ppo_clip", "dual_clip": 0.5}}, "algorithm.loss", "0.5"),
        ({"aggregate": "token_men"}, "algorithm.aggregate", "token_mean"),
        ({"kl": {"estimator": "k33"}}, "algorithm.kl.estimator", "k3"),
    ],
)
def test_mistakes_name_their_key(config, where, text):
    with pytest.raises(ConfigError, match=text) as refused:
        built = AlgorithmConfig(**config)
        load_estimator(built), Objective(built)
    assert refused.value.where == where


def test_options_of_every_shape():
    made = make("Rich", required=3, limit=None, sizes=[1, 2], way="down")
    assert (made.required, made.limit, made.sizes, made.way) == (3, None, (1, 2), "down")
    assert make("Rich", required=0, limit=2).limit == 2.0


@pytest.mark.parametrize(
    "options,where",
    [
        ({}, "algorithm.estimator"),
        ({"required": 1, "way": "left"}, "algorithm.estimator.way"),
        ({"required": 1.5}, "algorithm.estimator.required"),
        ({"required": True}, "algorithm.estimator.required"),
        ({"required": "1"}, "algorithm.estimator.required"),
        ({"required": 1, "sizes": [1, "2"]}, "algorithm.estimator.sizes"),
        ({"required": -1}, "algorithm.estimator"),
        ({"required": 1, "needs": []}, "algorithm.estimator.needs"),
    ],
)
def test_bad_options_are_refused(options, where):
    with pytest.raises(ConfigError) as refused:
        make("Rich", **options)
    assert refused.value.where == where


def test_a_plain_function_is_a_plugin_without_options():
    assert make("plain")(reward_N=2, group_N=0) == 2
    with pytest.raises(ConfigError, match="no option 'eps'"):
        make("plain", eps=1)


def test_a_plugin_that_does_not_say_what_it_needs_is_refused():
    with pytest.raises(ConfigError, match="does not say which columns it needs"):
        make("silent")


def test_a_stateful_estimator_refuses_kl_in_the_reward():
    # Its state would live on every rank, out of the checkpoint's sight.
    config = AlgorithmConfig(estimator="rae", kl={"coefficient": 0.1, "in": "reward"})
    with pytest.raises(ConfigError, match="keeps a state"):
        load_estimator(config)


def test_an_unknown_column_is_refused():
    with pytest.raises(ConfigError, match="old_logps"):
        make("Needy")


def test_a_loss_on_scalars_is_refused():
    with pytest.raises(ConfigError, match=r"token columns only, not \['length'\]"):
        Objective(AlgorithmConfig(loss=f"{__name__}:ScalarLoss"))
