"""The part of an answer that is the final one: what its last tag or its last boxes hold."""

import re

from hybridrl.rewards.rules._notation import FUNCTIONS, expression, prose
from hybridrl.rewards.rules._text import last_match

ANSWER = r"(?s)<answer>((?:(?!<answer>).)*?)</answer>"
"""The text of the last <answer> ... </answer>."""

_BRACE = re.compile(r"\\boxed\s*\{|\\[{}\\]|[{}]")
_JOINT = re.compile(
    r"(?:\\[()\[\]]|[\s$])*(?:[,;、，]|,?\s*(?:\\text\s*\{)?\s*(?:and|or|和|或|及|与)\s*\}?)"
    r"(?:\\[()\[\]]|[\s$])*(?:[A-Za-z]\w*\s*=\s*(?:\\[()\[\]]|[\s$])*)?"
)
_LONGEST_JOINT = 40
_WORD = re.compile(r"(?<![\\{\w])[^\W\d_]{3,}")


def final_part(answer: str) -> str:
    """The final answer in a form that the math-verify library reads; "" if there is none.

    A box that the text takes back, as in "\\boxed{4}. Wait: \\boxed{5}", is none; boxes joined by a comma,
    "and" or "or" are one answer together. A box that is never closed was cut off, and
    nobody knows how it goes on.
    """
    tagged = last_match(ANSWER, answer)
    if tagged is not None and "\\boxed" not in tagged:
        return delimited(tagged)
    text = answer if tagged is None else tagged
    boxes = _last_boxes(text)
    if boxes is None:
        return ""
    return " and ".join(f"\\boxed{{{expression(box)}}}" for box in boxes) or prose(text)


def delimited(text: str) -> str:
    """A text that is nothing but an answer, such as a reference, in a form that the library reads."""
    if "\\boxed" in text:
        return final_part(text)
    tidy = expression(text)
    # A bare "\frac12" or "(1,2)" is found only inside delimiters, and "10^{10}" is read as 10 without them.
    return prose(text) if _is_prose(tidy) else f"\\boxed{{{tidy}}}"


def _is_prose(text: str) -> bool:
    """Whether to look for an expression inside the text, instead of reading all of it as one.

    "the area is 5 cm" would be the product of its letters; "yes" and "Monday" are compared as such
    products, which works.
    """
    words = [word for word in _WORD.findall(text) if word not in FUNCTIONS]
    return bool(words) and any(c.isdigit() or c == "$" for c in text)


def _last_boxes(text: str) -> list[str] | None:
    """The contents of the last box and of those that are joined to it; empty without a box. None: the last
    box is never closed."""
    closed, is_open = _boxes(text)
    if is_open or not closed:
        return None if is_open else []
    first = len(closed) - 1
    while first and _joined(text[closed[first - 1][2] : closed[first][0]]):
        first -= 1
    return [text[start : end - 1] for _, start, end in closed[first:]]


def _joined(between: str) -> bool:
    return len(between) <= _LONGEST_JOINT and _JOINT.fullmatch(between) is not None


def _boxes(text: str) -> tuple[list[tuple[int, int, int]], bool]:
    """(Start, start of the content, end) of each closed box that lies in no other closed one, and whether the
    box that was opened last is still open."""
    closed: list[tuple[int, int, int]] = []
    opened: list[tuple[int, int] | None] = []  # None: a brace that is no box's
    last_opened = last_closed = -1
    for match in _BRACE.finditer(text):
        if match[0].startswith("\\boxed"):
            opened.append((match.start(), match.end()))
            last_opened = match.start()
        elif match[0] == "{":
            opened.append(None)
        elif match[0] == "}" and opened and (box := opened.pop()) is not None:
            while closed and closed[-1][0] > box[0]:
                closed.pop()
            closed.append((*box, match.end()))
            last_closed = max(last_closed, box[0])
    return closed, last_closed < last_opened
