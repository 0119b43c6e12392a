"""Options of a plug-in of any kind: one check, one text, one idea of what a value is."""

import pytest

from hybridrl.algorithms.plugins import build
from hybridrl.config.options import taken
from hybridrl.data.source import make_rows
from hybridrl.errors import ConfigError, HybridRLError
from hybridrl.rewards.plugin import load_reward


class Estimator:
    needs = frozenset()

    def __init__(self, scale: float, sizes: tuple[int, ...] = (1,)) -> None:
        self.scale, self.sizes = scale, sizes


def reward(answer, row, *, scale: float, sizes: tuple[int, ...] = (1,)) -> float:
    return scale * len(sizes)


def task(seed: int, *, scale: float, sizes: tuple[int, ...] = (1,)) -> list[dict]:
    return [{"sizes": sizes}]


def of_an_estimator(**options):
    return build("estimator", f"{__name__}:Estimator", options, where="key").sizes


def of_a_reward(**options):
    return load_reward(f"{__name__}:reward", options, where="key").function.keywords.get("sizes", (1,))


def of_a_task(**options):
    return make_rows(f"{__name__}:task", options, split="train", seed=0, where="key")[0]["sizes"]


KINDS = (of_an_estimator, of_a_reward, of_a_task)


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_the_config_is_what_the_plugin_declares(kind) -> None:
    assert kind(scale=1) == (1,), "an integer is a number"
    assert kind(scale=0.5, sizes=[2, 3]) == (2, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "what", "fix"),
    [
        ({"scale": "1"}, "scale = '1' is not a number", "give scale a number"),
        ({"scale": True}, "scale = true is not a number", "give scale a number"),
        (
            {"scale": 1, "sizes": [1, "2"]},
            "sizes = [1, '2'] is not a list, each an integer",
            "give sizes a list",
        ),
        ({"scale": 1, "size": [1]}, "has no option 'size'", "did you mean sizes?"),
        ({}, "needs the option scale", "add scale: ..."),
    ],
)
def test_a_mistake_is_refused_in_the_same_words_wherever_it_is_made(kind, options, what, fix) -> None:
    with pytest.raises(ConfigError) as refused:
        kind(**options)
    assert what in refused.value.what and refused.value.fix.startswith(fix)
    assert refused.value.where.startswith("key")


def test_an_option_that_is_a_key_is_named_by_it() -> None:
    with pytest.raises(HybridRLError) as refused:
        taken(reward, {"scale": "much"}, title="reward mine", where="reward", are_keys=True, positional=2)
    assert refused.value.where == "reward.scale"
