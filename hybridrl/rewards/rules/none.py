"""0 for every answer: a run in which a reward model judges alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.registry import register


@register("reward", "none")
@dataclass(frozen=True, kw_only=True, slots=True)
class NoRule:
    def __call__(self, answer: str, row: Mapping[str, Any]) -> float:
        return 0.0

    def gold(self, row: Mapping[str, Any], *, answer_field: str) -> None:
        """There is none: this reward neither accepts nor rejects an answer."""
        return None
