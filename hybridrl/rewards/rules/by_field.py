"""Another reward for each kind of row, which a column names: math, code and games in one run.

reward:
  name: by_field
  field: kind
  several:
    math: {name: math_verify}
    code: {name: unit_tests, answer_field: tests}
    game: none

Each of them is a part of the reward: the metric reward/math/mean is the mean over the rows of that kind.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from typing import Any

from hybridrl.registry import register
from hybridrl.rewards.parts import chosen_by_row
from hybridrl.rewards.plugin import LoadedReward, hang_score_of, load_reward
from hybridrl.rewards.score import read_score


@register("reward", "by_field")
@dataclass(kw_only=True)
class ByField:
    field: str
    """Column of the data that names the reward of a row; kind.name is a field inside a column."""

    several: InitVar[dict[str, Any]]
    """Value of the column -> a reward: its name, or {name, options of that reward, answer_field}. The value
    names the part in metrics."""

    rewards: dict[str, tuple[str | None, LoadedReward]] = dataclasses.field(init=False)
    """Value of the column -> an answer_field of its own, and the reward."""

    hang_score: float | None = dataclasses.field(init=False)
    """0 if one of the rewards has one. None: none has one."""

    def __post_init__(self, several: dict[str, Any]) -> None:
        if not several:
            raise ValueError("by_field has no rewards: several is empty")
        self.rewards = {value: _loaded(value, given) for value, given in several.items()}
        self.hang_score = hang_score_of(reward for _, reward in self.rewards.values())

    def warm_up(self) -> None:
        for _, reward in self.rewards.values():
            reward.warm_up()

    def __call__(self, answer: str, row: Mapping[str, Any], *, answer_field: str) -> dict[str, float]:
        """The reward of the row's own kind, as a part that has its name; parts of that reward have the name
        in front of theirs."""
        value, own_field, reward = self._of(row)
        score = read_score(reward(answer, row, answer_field=own_field or answer_field))
        parts = {f"{value}/{part}": number for part, number in score.parts.items()}
        return {**parts, value: score.reward, "reward": score.reward}

    def gold(self, row: Mapping[str, Any], *, answer_field: str) -> str | None:
        """The gold answer of the row's own reward. There is none for code of yours that makes none itself:
        it may expect another form."""
        _, own_field, reward = self._of(row)
        if ":" in reward.name and not reward.makes_gold:
            return None
        return reward.gold(row, answer_field=own_field or answer_field)

    def _of(self, row: Mapping[str, Any]) -> tuple[str, str | None, LoadedReward]:
        value = chosen_by_row(row, self.field, self.rewards)
        return value, *self.rewards[value]


def _loaded(value: str, given: Any) -> tuple[str | None, LoadedReward]:
    options = {"name": given} if isinstance(given, str) else given
    if value == "reward" or not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
        raise ValueError(f"several.{value} needs the name of a reward, and is not called 'reward'")
    own = {option: of for option, of in options.items() if option not in ("name", "answer_field")}
    key = f"reward.several.{value}"
    return options.get("answer_field"), load_reward(options["name"], own, where=key, key=f"{key}.name")
