"""The score that the reasoning-gym library gives an answer to one of its puzzles, in [0, 1].

The reward scores rows of the task hybridrl.data.tasks.reasoning_gym; each dataset of the library has its own
scorer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from hybridrl.registry import register
from hybridrl.rewards.reference import plain_text

UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    SyntaxError,
    RecursionError,
)
"""Errors of the library's scorers; several raise one on any text that does not have the form of an answer."""


@register("reward", "reasoning_gym")
@dataclass(frozen=True, kw_only=True, slots=True)
class ReasoningGym:
    extract_tag: str | None = None
    """Tag around the final answer: for `answer`, the last <answer>...</answer> is scored, and an answer
    without one earns 0. None: the whole answer is scored, without white space around it."""

    hang_score: ClassVar[float] = 0.0

    def warm_up(self) -> None:
        # Imported in functions: it takes 1 s, for which a check of the options need not wait.
        import reasoning_gym.factory  # noqa: F401

    def __call__(self, answer: str, row: Mapping[str, Any], *, answer_field: str) -> float:
        from reasoning_gym.utils import extract_answer

        entry = _entry(row, answer_field)
        found = answer.strip() if self.extract_tag is None else extract_answer(answer, self.extract_tag)
        if found is None:
            return 0.0
        scorer = _scorer(row["data_source"])
        try:
            return scorer(found, entry)
        except UNREADABLE:
            return 0.0

    def gold(self, row: Mapping[str, Any], *, answer_field: str) -> str | None:
        answer = _entry(row, answer_field)["answer"]
        if answer is None or self.extract_tag is None:
            return None if answer is None else plain_text(answer)
        return f"<{self.extract_tag}>{plain_text(answer)}</{self.extract_tag}>"

    def columns(self, answer_field: str) -> tuple[str, ...]:
        return "prompt", "metadata", "data_source", answer_field

    def check_row(self, row: Mapping[str, Any], *, answer_field: str) -> None:
        _entry(row, answer_field)
        for name, kind, what in (("metadata", Mapping, "an object"), ("data_source", str, "text")):
            if not isinstance(row[name], kind):
                raise ValueError(f"{name!r} is {row[name]!r:.80}, not {what}")


def _entry(row: Mapping[str, Any], answer_field: str) -> dict[str, Any]:
    missing = [name for name in ("prompt", "metadata", "data_source", answer_field) if name not in row]
    if missing:
        raise ValueError(f"the row has no {missing[0]!r}: this reward scores rows of the task reasoning_gym")
    return {"question": row["prompt"], "answer": row[answer_field], "metadata": row["metadata"]}


@lru_cache
def _scorer(dataset: str) -> Callable[[str, dict[str, Any]], float]:
    from reasoning_gym.factory import DATASETS

    kind, config = DATASETS[dataset]
    return kind(config=config()).score_answer
