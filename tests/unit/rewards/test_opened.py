"""A pattern cannot ask for a tag that the prompt holds already."""

from typing import Any

import pytest

from hybridrl.config.schema import RewardConfig
from hybridrl.errors import ConfigError
from hybridrl.rewards.opened import check_patterns, opened_part, requires
from hybridrl.rewards.plugin import load_reward

THINK = "<think>\n"


@pytest.mark.parametrize(
    ("written", "by_template", "opened"),
    [
        ("<|assistant|><think>\n", True, THINK),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", True, "<think>\n\n</think>\n\n"),
        ("<|assistant|>", True, ""),
        ("<|assistant|><think>\nOkay,", True, "<think>\nOkay,"),
        ("Assistant: <think>", False, "<think>"),
        ("reply in <think> </think> <answer> </answer>", False, ""),
        ("make <b>bold</b> and answer", False, ""),
    ],
)
def test_the_opened_part(written: str, by_template: bool, opened: str) -> None:
    assert opened_part(written, by_template=by_template) == opened


@pytest.mark.parametrize(
    ("pattern", "asks"),
    [
        (r"(?s)^<think>.+</think>.+", True),
        (r"\A\s*<think>", True),
        (r"(<think>.*?</think>)\s*<answer>", True),
        (r"(?:<think>\n)+x", True),
        (r"(?i)<THINK>x", True),
        (r"<think>a|<think>b", True),
        (r"(?=.*<think>)x", True),
        (r"(?:<think>)?.+</think>", False),
        (r"(?:<think>)*x", False),
        (r"<think>a|b", False),
        (r"</think>", False),
        (r"(?!.*<think>)x", False),
        (r"<thi.*nk>", False),
    ],
)
def test_what_every_match_contains(pattern: str, asks: bool) -> None:
    assert requires(pattern, "<think>") is asks


PATTERN = r"(?s)^<think>.+</think>.+"
SUM = {"format": {"name": "regex", "weight": 0.1, "pattern": PATTERN}, "x": {"name": "none", "weight": 1}}


@pytest.mark.parametrize(
    ("name", "options", "key", "fix"),
    [
        (
            "regex",
            {"pattern": PATTERN},
            "reward.pattern",
            r"reward.opened: '<think>\n' shows it to the pattern",
        ),
        ("exact_match", {"extract": "<think>(.*)"}, "reward.extract", "leave <think> out of reward.extract"),
        (
            "weighted_sum",
            {"parts": SUM},
            "reward.parts.format.pattern",
            r"reward.parts.format.opened: '<think>\n'",
        ),
    ],
)
def test_a_pattern_that_asks_for_an_opened_tag_is_refused(
    name: str, options: dict[str, Any], key: str, fix: str
) -> None:
    reward = RewardConfig.model_validate({"name": name} | options)
    check_patterns(reward, "", where="")
    check_patterns(reward, "<other>", where="")
    with pytest.raises(ConfigError) as refused:
        check_patterns(reward, THINK, where="my.yaml:3")
    assert refused.value.what.startswith(f"{key} = ") and "no answer has that tag" in refused.value.what
    assert (refused.value.fix or "").startswith(fix)


def test_the_pattern_sees_the_opened_part() -> None:
    options = {"pattern": PATTERN, "opened": THINK}
    check_patterns(RewardConfig.model_validate({"name": "regex"} | options), THINK, where="")
    reward = load_reward("regex", options, where="")
    answers = ["2*9</think>18", "2*9", "</think>18"]
    assert [reward(answer, {}, answer_field="answer") for answer in answers] == [1, 0, 1]


def test_an_empty_opened_part_hides_the_tag_too() -> None:
    reward = RewardConfig.model_validate({"name": "regex", "pattern": PATTERN, "opened": ""})
    with pytest.raises(ConfigError, match="asks for <think>"):
        check_patterns(reward, THINK, where="")


@pytest.mark.parametrize("opened", ["", "<reason>", "<think>\n\n</think>\n"])
def test_an_opened_part_that_is_not_written_is_refused(opened: str) -> None:
    reward = RewardConfig.model_validate({"name": "regex", "pattern": PATTERN, "opened": THINK})
    with pytest.raises(ConfigError, match="reward.opened = '<think>"):
        check_patterns(reward, opened, where="")
