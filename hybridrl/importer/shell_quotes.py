"""Finds where quotes and brackets of a shell script close."""


def end_of(text: str, mark: str, at: int) -> int:
    """The position of the mark, or the end of the text."""
    found = text.find(mark, at)
    return len(text) if found < 0 else found


def piece_end(text: str, at: int) -> int:
    """The position after the quoted or single character here; past the end if it is not closed."""
    if text[at] == "\\":
        return at + 2
    if text[at] == "'":
        return end_of(text, "'", at + 1) + 1
    if text[at] in '"`':
        return quoted_end(text, at)
    if text.startswith("$'", at):
        return _ansi_end(text, at + 2)
    return at + 1


def _ansi_end(text: str, at: int) -> int:
    while at < len(text) and text[at] != "'":
        at += 1 + (text[at] == "\\")
    return at + 1


def quoted_end(text: str, at: int) -> int:
    """After the double quote or backtick that closes the one here."""
    mark, at = text[at], at + 1
    while at < len(text) and text[at] != mark:
        nested = mark == '"' and text.startswith(("$(", "${"), at)
        at = nested_end(text, at + 1) if nested else at + 1 + (text[at] == "\\")
    return at + 1


def nested_end(text: str, at: int) -> int:
    """After the bracket that closes the one here; brackets in quotes and comments do not count."""
    opening, closing = text[at], {"(": ")", "{": "}"}[text[at]]
    depth = 0
    while at < len(text):
        char = text[at]
        if char == "#" and opening == "(" and text[at - 1].isspace():
            at = end_of(text, "\n", at)
            continue
        if char in "\"'`":
            at = end_of(text, "'", at + 1) + 1 if char == "'" else quoted_end(text, at)
            continue
        depth += (char == opening) - (char == closing)
        at += 1 + (char == "\\")
        if depth == 0:
            return at
    return len(text) + 1
