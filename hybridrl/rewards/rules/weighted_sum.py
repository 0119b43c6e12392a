"""The weighted sum of several rewards, as one for the right answer plus a small one for the right form.

reward:
  name: weighted_sum
  parts:
    correct: {name: math_verify, weight: 1.0}
    format: {name: regex, weight: 0.1, pattern: '\\boxed\\{.+\\}'}
"""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any

from hybridrl.registry import register
from hybridrl.rewards.judges.replies import NotAskedError
from hybridrl.rewards.plugin import LoadedReward, hang_score_of, load_reward
from hybridrl.rewards.score import read_score


@register("reward", "weighted_sum")
@dataclass(kw_only=True)
class WeightedSum:
    parts: InitVar[dict[str, dict[str, Any]]]
    """Label -> {name, weight, options of that reward}. The label names the part in metrics."""

    rewards: dict[str, tuple[float, LoadedReward]] = field(init=False)

    hang_score: float | None = field(init=False)
    """0 if a part has one: when that part hangs, the sum is not known. None: no part has one."""

    def __post_init__(self, parts: dict[str, dict[str, Any]]) -> None:
        if not parts:
            raise ValueError("weighted_sum has no parts")
        self.rewards = {label: _part(label, dict(options)) for label, options in parts.items()}
        if not any(weight for weight, _ in self.rewards.values()):
            raise ValueError("every weight is 0: every reward would be 0")
        self.hang_score = hang_score_of(reward for _, reward in self.rewards.values())

    def warm_up(self) -> None:
        for _, reward in self.rewards.values():
            reward.warm_up()

    def __call__(self, answer: str, row: Mapping[str, Any], *, answer_field: str) -> dict[str, float]:
        """The value of each part before its weight, and their weighted sum as the reward."""
        values = {
            label: _value(reward, answer, row, answer_field) for label, (_, reward) in self.rewards.items()
        }
        return values | {"reward": sum(weight * values[label] for label, (weight, _) in self.rewards.items())}

    def gold(self, row: Mapping[str, Any], *, answer_field: str) -> str | None:
        """The gold answer of the first part that has one."""
        made = (reward.gold(row, answer_field=answer_field) for _, reward in self.rewards.values())
        return next((gold for gold in made if gold is not None), None)


def _value(reward: LoadedReward, answer: str, row: Mapping[str, Any], answer_field: str) -> float:
    """What a part gives an answer. A judge that is not asked, because the rules are only tried, gives 0."""
    try:
        return read_score(reward(answer, row, answer_field=answer_field)).reward
    except NotAskedError:
        return 0.0


def _part(label: str, options: dict[str, Any]) -> tuple[float, LoadedReward]:
    if label == "reward" or "name" not in options or not isinstance(options.get("weight"), (int, float)):
        raise ValueError(f"part {label!r} needs a name and a weight, and a label other than 'reward'")
    name, weight = options.pop("name"), float(options.pop("weight"))
    key = f"reward.parts.{label}"
    return weight, load_reward(name, options, where=key, key=f"{key}.name")
