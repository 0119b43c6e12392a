"""Conditions that a script decides itself: [ ], [[ ]] and case over values that it has set."""

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from hybridrl.importer.shell_nodes import Arithmetic, Node, Simple
from hybridrl.importer.shell_syntax import words_of
from hybridrl.importer.shell_words import Unknown, Variables, Word, value


def _integer(text: str) -> int:
    """
    Raises:
        ValueError: not a decimal number; with a 0 in front it is octal in [[ ]].
    """
    if not re.fullmatch(r"[+-]?(0|[1-9][0-9]*)", text):
        raise ValueError(text)
    return int(text)


_COMPARES: Mapping[str, Callable[[str, str], bool]] = {
    "=": lambda left, right: left == right,
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "-eq": lambda left, right: _integer(left) == _integer(right),
    "-ne": lambda left, right: _integer(left) != _integer(right),
    "-lt": lambda left, right: _integer(left) < _integer(right),
    "-le": lambda left, right: _integer(left) <= _integer(right),
    "-gt": lambda left, right: _integer(left) > _integer(right),
    "-ge": lambda left, right: _integer(left) >= _integer(right),
}


_PATTERN = re.compile(r"[*?\[\\]|[+@!]\(")


def is_test(node: Node) -> bool:
    """Whether a command only decides something."""
    if isinstance(node, Arithmetic):
        return True
    if not isinstance(node, Simple) or not node.words:
        return False
    return node.words[0].split()[0] in {"[", "[[", "test"}  # all of [[ ]] is one word


def result(test: str | Sequence[Word], known: Variables, line: int) -> bool | None:
    """The result of [ ], given its words, or of [[ ]], given its text. None: only a run could tell."""
    try:
        if isinstance(test, str):
            raw = words_of(test[2:-2])
            if any(_PATTERN.search(one) for one in raw):
                return None
            texts = [value(one, known) for one in raw]
            return None if _compares_with_a_pattern(raw, texts) else _decided(texts)
        if any(word.unknown for word in test):
            return None
        texts = [word.text for word in test[1:]]
        return _decided(texts[:-1] if test[0].text == "[" else texts)
    except (Unknown, ValueError):
        return None


def _compares_with_a_pattern(raw: Sequence[str], texts: Sequence[str]) -> bool:
    """Whether the right side of a comparison in [[ ]] is a variable that holds a pattern, without quotes."""
    is_quoted = re.fullmatch(r'"[^"]*"', raw[-1]) if raw else True
    return raw[-2:-1] in (["="], ["=="], ["!="]) and not is_quoted and bool(_PATTERN.search(texts[-1]))


def _decided(words: list[str]) -> bool | None:
    match words:
        case ["!", *rest]:
            found = _decided(rest)
            return None if found is None else not found
        case ["-z" | "-n" as which, text]:
            return (text == "") == (which == "-z")
        case [text] if text not in {"-z", "-n"}:
            return text != ""
        case [left, operator, right] if operator in _COMPARES:
            return _COMPARES[operator](left, right)
    return None


def matches(word: str, patterns: Sequence[str], known: Variables) -> bool | None:
    """Whether the word of a case is of one of the patterns. None: only a run could tell."""
    if "*" in patterns:
        return True
    try:
        text = value(word, known)
        if any(re.search(r"['\"\\$`\[+@!(]", one) for one in patterns):
            plain = all(re.fullmatch(r"(['\"]?)[\w./-]*\1", one) for one in patterns)
            return text in [one.strip("'\"") for one in patterns] if plain else None
        return any(fnmatchcase(text, one) for one in patterns)
    except Unknown:
        return None
