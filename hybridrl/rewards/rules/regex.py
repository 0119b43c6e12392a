"""1 for an answer in which a pattern is found, else 0; optionally a group of it has to equal the
reference."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.registry import register
from hybridrl.rewards.reference import reference
from hybridrl.rewards.rules._text import find_last


@register("reward", "regex")
@dataclass(frozen=True, kw_only=True, slots=True)
class Regex:
    pattern: str
    """Python regular expression, searched anywhere in the answer; flags go inside, as in (?s)."""

    group: int | str | None = None
    """Group of the last match that must equal the reference, without white space around it. None: a match is
    enough."""

    opened: str | None = None
    """What the chat template writes at the head of every answer, such as "<think>\\n": the pattern sees it in
    front of the answer. None: the pattern sees the answer alone."""

    def __post_init__(self) -> None:
        compiled = re.compile(self.pattern)
        if isinstance(self.group, str) and self.group not in compiled.groupindex:
            raise ValueError(f"pattern {self.pattern!r} has no group {self.group!r}")
        if isinstance(self.group, int) and not 0 <= self.group <= compiled.groups:
            raise ValueError(f"pattern {self.pattern!r} has {compiled.groups} groups, group = {self.group}")

    def __call__(self, answer: str, row: Mapping[str, Any], *, answer_field: str) -> float:
        answer = (self.opened or "") + answer
        if self.group is None:
            return float(re.search(self.pattern, answer) is not None)
        found = find_last(self.pattern, answer)
        right = reference(row, answer_field).strip()
        return 0.0 if found is None else float((found[self.group] or "").strip() == right)

    def gold(self, row: Mapping[str, Any], *, answer_field: str) -> None:
        """There is none: no answer can be made from a pattern."""
        return None

    def columns(self, answer_field: str) -> tuple[str, ...]:
        return () if self.group is None else (answer_field,)

    def check_row(self, row: Mapping[str, Any], *, answer_field: str) -> None:
        reference(row, answer_field)
