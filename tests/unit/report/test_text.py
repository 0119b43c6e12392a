"""Terminal escape sequences and control characters are taken out of what a model wrote."""

import pytest

from hybridrl.report.text import clean, escaped

MARK = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb", "a\nb"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;file:///etc\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;aGk=", ""),  # the clipboard, unfinished
        ("\x9b31mred", "red"),
        ("\x1bPq#0\x1b\\x", "x"),
        ("a\x00b\x08", f"a{MARK}b{MARK}"),
        ("abc\u202edef", f"abc{MARK}def"),
        ("\ud800", MARK),
        ("plain ünïcode 数", "plain ünïcode 数"),
    ],
)
def test_clean(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_escaped_text_is_safe_in_elements_and_attributes() -> None:
    assert escaped("<a href=\"x\" b='y'>&\x1b[1m") == "&lt;a href=&quot;x&quot; b=&#x27;y&#x27;&gt;&amp;"
