"""Code that the rules share: the last match of a pattern, and the part of a reference that one finds."""

import re
from collections import deque
from collections.abc import Mapping
from typing import Any

from hybridrl.rewards.reference import reference


def last_match(pattern: str, text: str) -> str | None:
    """Text of the pattern's last match, or of the match's first group if the pattern has one. None: no
    match."""
    found = find_last(pattern, text)
    if found is None:
        return None
    return (found[1] if found.re.groups else found[0]) or ""


def find_last(pattern: str, text: str) -> re.Match[str] | None:
    """The pattern's last match."""
    last = deque(re.finditer(pattern, text), maxlen=1)
    return last[0] if last else None


def extracted_reference(row: Mapping[str, Any], answer_field: str, pattern: str | None) -> str:
    """The reference, or the part of it that a pattern finds.

    Raises:
        ValueError: as for reference(), or the pattern finds nothing: no answer to this row could ever be
            right.
    """
    text = reference(row, answer_field)
    if pattern is None:
        return text
    part = last_match(pattern, text)
    if part is None:
        raise ValueError(f"extract_reference {pattern!r} finds nothing in the reference {text!r:.80}")
    return part
