"""1 for an answer that is the reference, character by character, else 0."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.registry import register
from hybridrl.rewards.reference import reference
from hybridrl.rewards.rules._text import extracted_reference, last_match


@register("reward", "exact_match")
@dataclass(frozen=True, kw_only=True, slots=True)
class ExactMatch:
    strip: bool = True
    """Ignore white space around answer and reference."""

    casefold: bool = False
    """Ignore case."""

    extract: str | None = None
    """Pattern whose last match in the answer is compared (its first group, if it has one); no match earns 0.
    None: the whole answer."""

    extract_reference: str | None = None
    """The same for the reference, where no match is an error."""

    def __post_init__(self) -> None:
        for pattern in (self.extract, self.extract_reference):
            re.compile(pattern or "")

    def __call__(self, answer: str, row: Mapping[str, Any], *, answer_field: str) -> float:
        right = self._form(extracted_reference(row, answer_field, self.extract_reference))
        found = answer if self.extract is None else last_match(self.extract, answer)
        return 0.0 if found is None else float(self._form(found) == right)

    def gold(self, row: Mapping[str, Any], *, answer_field: str) -> str | None:
        if self.extract is None:
            return extracted_reference(row, answer_field, self.extract_reference)
        whole = reference(
            row, answer_field
        )  # a worked solution often has the form that the answer should have
        return None if last_match(self.extract, whole) is None else whole

    def columns(self, answer_field: str) -> tuple[str, ...]:
        return (answer_field,)

    def check_row(self, row: Mapping[str, Any], *, answer_field: str) -> None:
        extracted_reference(row, answer_field, self.extract_reference)

    def _form(self, text: str) -> str:
        text = text.strip() if self.strip else text
        return text.casefold() if self.casefold else text
