"""1 for an answer that equals one of several references, as open questions are judged, else 0.

Case, punctuation, the articles a, an and the, and white space between words do not count. Source: Rajpurkar
et al. 2016, SQuAD, arXiv:1606.05250; Search-R1, arXiv:2503.09516, judges so too.
"""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.registry import register
from hybridrl.rewards.rules._text import last_match

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@register("reward", "qa_match")
@dataclass(frozen=True, kw_only=True, slots=True)
class QAMatch:
    extract: str | None = "<answer>(.*?)</answer>"
    """Pattern whose last match in the answer is compared (its first group, if it has one); no match earns 0.
    null: the whole answer."""

    def __post_init__(self) -> None:
        re.compile(self.extract or "")

    def __call__(self, answer: str, row: Mapping[str, Any], *, answer_field: str) -> float:
        found = answer if self.extract is None else last_match(self.extract, answer)
        return float(found is not None and _plain(found) in map(_plain, _references(row, answer_field)))

    def gold(self, row: Mapping[str, Any], *, answer_field: str) -> str | None:
        """The first reference, in the form that answers have, if that is known."""
        (first, *_) = _references(row, answer_field)
        if self.extract is None:
            return first
        opening, _, closing = self.extract.partition("(.*?)")
        whole = f"{opening}{first}{closing}"
        return whole if last_match(self.extract, whole) is not None else None

    def columns(self, answer_field: str) -> tuple[str, ...]:
        return (answer_field,)

    def check_row(self, row: Mapping[str, Any], *, answer_field: str) -> None:
        _references(row, answer_field)


def _references(row: Mapping[str, Any], answer_field: str) -> list[str]:
    """The references of a row: a string, a list of them, or a mapping with the key target, as in verl's files
    of open questions.

    Raises:
        ValueError: the row has none.
    """
    value: Any = row.get(answer_field)
    if isinstance(value, Mapping):
        value = value.get("target")
    if hasattr(value, "tolist"):  # a list of a parquet file
        value = value.tolist()
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(text, str) and text for text in found):
        raise ValueError(f"{answer_field} = {value!r:.60} is neither a text nor a list of texts")
    return found


def _plain(text: str) -> str:
    text = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())
