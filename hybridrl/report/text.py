"""Makes text of models, tools and data safe to show: in a page, and in a terminal."""

import html
import re
import unicodedata

_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, links, clipboard
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"  # device control strings
    r"|\x1b\[[0-?]*[ -/]*[@-~]?"  # colours, cursor
    r"|\x1b[ -/]*[0-~]?"
    r"|\x9b[0-?]*[ -/]*[@-~]?"
)
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
"""Characters that reorder the text around them, so that a page shows another text than the model wrote."""


def clean(text: str) -> str:
    """The text without terminal escape sequences; other control characters, and those that change the
    direction of writing, are replaced by U+FFFD. Line ends and tabs stay."""
    return "".join(
        c if c in "\n\t" or not _is_control(c) else "\N{REPLACEMENT CHARACTER}"
        for c in _ESCAPES.sub("", text.replace("\r\n", "\n"))
    )


def escaped(text: object) -> str:
    """Clean text for the inside of an element or of a quoted attribute."""
    return html.escape(clean(str(text)), quote=True)


def _is_control(character: str) -> bool:
    return character in _DIRECTIONS or unicodedata.category(character) in ("Cc", "Cs")
