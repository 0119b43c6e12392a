"""The verdict of a language model about an answer: an engine of the run, which the section judge describes.

judge: {path: Qwen/Qwen2.5-7B-Instruct}
reward:
  name: judge
  prompt: "Question: {question}\\nReference: {answer}\\nAnswer: {response}\\nGrade it from 0 to 10."
  parse: number
  most: 10
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hybridrl import registry
from hybridrl.registry import register
from hybridrl.rewards.judges.replies import UnjudgedError, reply_to
from hybridrl.rewards.score import UnreadableScore, read_score
from hybridrl.types import in_row

RESPONSE = "response"
"""Placeholder of the answer that is judged; every other one is a column of the data."""

_PLACE = re.compile(r"\{([\w.]+)\}")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
_CODE = re.compile(r"[\w./-]+:\w+")


@register("reward", "judge")
@dataclass(frozen=True, kw_only=True)
class EngineJudge:
    prompt: str
    """What the model is asked: {response} is the answer, {question} the column question, and so on."""

    system: str = ""
    """System message before it."""

    parse: str = "number"
    """How a verdict is read. number: the last number in it; a regular expression with one group; or
    module:function, called with the verdict and the row."""

    verdicts: dict[str, float] = field(default_factory=dict)
    """Words that the group may be, and their values: {yes: 1, no: 0}."""

    least: float = 0.0
    most: float = 1.0
    """A number outside of [least, most] is no verdict."""

    read: Callable[[str, Mapping[str, Any]], Any] | None = field(init=False, repr=False)
    """Reads a verdict. None: it is code of the user, which the scoring process imports."""

    def __post_init__(self) -> None:
        if RESPONSE not in _PLACE.findall(self.prompt):
            raise ValueError("prompt has no {response}: the judge would not see the answer")
        if self.least >= self.most:
            raise ValueError(f"least = {self.least} is not below most = {self.most}")
        object.__setattr__(self, "read", None if _CODE.fullmatch(self.parse) else self._pattern())

    def warm_up(self) -> None:
        """Import what reads verdicts."""
        if self.read is None:
            code = registry.find("hybridrl.rewards.rules", self.parse, key="parse", where="reward")
            object.__setattr__(self, "read", code)

    @property
    def key(self) -> str:
        """What its replies are found by."""
        return repr(self)

    def columns(self, answer_field: str) -> tuple[str, ...]:
        return tuple(name for name in dict.fromkeys(_PLACE.findall(self.prompt)) if name != RESPONSE)

    def check_row(self, row: Mapping[str, Any], *, answer_field: str) -> None:
        """
        Raises:
            ValueError: the prompt needs a column that the row does not have.
        """
        for name in self.columns(answer_field):
            if in_row(row, name) is None:
                raise ValueError(f"the judge's prompt has {{{name}}}, and the row has no {name}")

    def messages(self, answer: str, row: Mapping[str, Any]) -> list[dict[str, str]]:
        """What the model is asked about an answer."""
        text = _PLACE.sub(
            lambda place: answer if place[1] == RESPONSE else _shown(row, place[1]), self.prompt
        )
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": text}]

    def __call__(self, answer: str, row: Mapping[str, Any]) -> float:
        """
        Raises:
            UnjudgedError: the model gave no verdict.
        """
        verdict = str(reply_to(row, self.key))
        self.warm_up()
        assert self.read is not None
        try:
            number = read_score(self.read(verdict, row)).reward
        except UnreadableScore as error:
            raise UnjudgedError(f"no_verdict: {error}: {verdict[-60:]!r}") from None
        if not self.least <= number <= self.most:
            raise UnjudgedError(f"no_verdict: {number:g} is not from {self.least:g} to {self.most:g}")
        return number

    def gold(self, row: Mapping[str, Any], *, answer_field: str) -> None:
        """There is none: nobody is asked about reference answers."""
        return None

    def _pattern(self) -> Callable[[str, Mapping[str, Any]], Any]:
        if self.parse == "number":
            return partial(_last, _NUMBER, {})
        pattern = re.compile(self.parse)
        if pattern.groups != 1:
            raise ValueError(f"parse = {self.parse!r} has {pattern.groups} groups, and a verdict is one")
        return partial(_last, pattern, {word.lower(): value for word, value in self.verdicts.items()})


def _last(pattern: re.Pattern[str], values: Mapping[str, float], verdict: str, row: Mapping[str, Any]) -> Any:
    """The number that the last match of a pattern says.

    Raises:
        UnreadableScore: nothing matches, or what does is no number.
    """
    found = [match[pattern.groups] for match in pattern.finditer(verdict)]
    if not found:
        raise UnreadableScore("nothing in the verdict matches parse")
    word = found[-1].strip().lower()
    if word in values:
        return values[word]
    try:
        return float(word)
    except ValueError:
        raise UnreadableScore(f"{word!r:.40} is neither a number nor one of the verdicts") from None


def _shown(row: Mapping[str, Any], name: str) -> str:
    value = in_row(row, name)
    return "" if value is None else str(value)
