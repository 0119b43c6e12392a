"""A shell script read as far as launch scripts need it: assignments, arrays, defaults, arithmetic.

Nothing is executed. What only a run could tell (a command's output, an argument of the script) makes the
words that hold it unknown. Of the values that the branches of an `if` or `case` give a variable, the first
stands.
"""

import ast
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_NAME = r"[A-Za-z_]\w*"
_ASSIGNMENT = re.compile(rf"({_NAME})(\+?)=(.*)", re.DOTALL)
_ARRAY = re.compile(rf'"?\$\{{({_NAME})\[[@*]\]\}}"?')
_PARAMETER = re.compile(rf"({_NAME}|\d+)(?:(:?[-=])(.*))?", re.DOTALL)
_OPENING, _CLOSING = {"if", "case", "for", "while", "until"}, {"fi", "esac", "done"}
_PREFIXES = {"then", "else", "elif", "do", "{", "export", "local", "readonly", "declare", "time", "exec"}
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class Unknown(Exception):
    """A word that only a run of the script could tell; the message is the part that is to blame."""


@dataclass(frozen=True, slots=True)
class Word:
    line: int
    """Line on which its command begins, counted from 1."""

    text: str
    """Expanded; as written where something in it is unknown."""

    unknown: str = ""
    """The part that only a run could tell."""


@dataclass(slots=True)
class _Variables:
    scalars: dict[str, str]
    arrays: dict[str, list[Word]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


def commands(text: str, variables: Mapping[str, str]) -> Iterator[list[Word]]:
    """The words of every command of a script in its order, expanded by the assignments before it.

    Args:
        variables: what the script finds set: HOME and the like.
    """
    known, depth = _Variables(dict(variables)), 0
    for line, raw in _statements(text):
        while raw and raw[0] in _PREFIXES | _OPENING | _CLOSING:
            depth += (raw[0] in _OPENING) - (raw[0] in _CLOSING)
            raw = raw[1:]
        while raw and (found := _ASSIGNMENT.fullmatch(raw[0])):
            _assign(known, found[1], found[3], line, append=bool(found[2]), in_branch=depth > 0)
            raw = raw[1:]
        if raw:
            yield [word for one in raw for word in _expand(one, known, line)]


def _statements(text: str) -> Iterator[tuple[int, list[str]]]:
    """Line and words of each command, as written; quotes are still there."""
    words: list[str] = []
    line = start = 1
    for word, newlines in _tokens(text):
        if word == "\n":
            if words:
                yield start, words
            words = []
        else:
            start = line if not words else start
            words.append(word)
        line += newlines
    if words:
        yield start, words


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """Words as written, and "\\n" where a command ends; each with the line ends up to it."""
    at, newlines, word = 0, 0, ""
    while at < len(text):
        char = text[at]
        if text.startswith("\\\n", at):
            at, newlines = at + 2, newlines + 1
        elif char == "#" and not word:
            at = _end(text, "\n", at)
        elif char in " \t\r\n;|" or (char == "&" and not word.endswith(">")):
            if word:
                yield word, newlines
                word, newlines = "", 0
            if char in "\n;|&":
                yield "\n", newlines + (char == "\n")
                newlines = 0
            at += 1
        else:
            end = _piece_end(text, at, word)
            word, newlines, at = word + text[at:end], newlines + text.count("\n", at, end), end
    if word:
        yield word, newlines


def _piece_end(text: str, at: int, word: str) -> int:
    """The position after the quoted, nested or single character that begins here."""
    if text[at] == "\\":
        return at + 2
    if text[at] == "'":
        return _end(text, "'", at + 1) + 1
    if text[at] in '"`':
        return _quoted_end(text, at)
    if text.startswith("$(", at) or text.startswith("${", at):
        return _nested_end(text, at + 1)
    if text[at] == "(" and re.fullmatch(rf"{_NAME}\+?=", word):
        return _nested_end(text, at)
    return at + 1


def _end(text: str, mark: str, at: int) -> int:
    found = text.find(mark, at)
    return len(text) if found < 0 else found


def _quoted_end(text: str, at: int) -> int:
    mark, at = text[at], at + 1
    while at < len(text) and text[at] != mark:
        nested = mark == '"' and (text.startswith("$(", at) or text.startswith("${", at))
        at = _nested_end(text, at + 1) if nested else at + 1 + (text[at] == "\\")
    return at + 1


def _nested_end(text: str, at: int) -> int:
    """After the bracket that closes the one here; brackets in quotes and comments do not count."""
    opening, closing = text[at], {"(": ")", "{": "}"}[text[at]]
    depth = 0
    while at < len(text):
        char = text[at]
        if char == "#" and opening == "(" and text[at - 1].isspace():
            at = _end(text, "\n", at)
            continue
        if char in "\"'":
            at = _end(text, "'", at + 1) + 1 if char == "'" else _quoted_end(text, at)
            continue
        depth += (char == opening) - (char == closing)
        at += 1 + (char == "\\")
        if depth == 0:
            break
    return at


def _assign(known: _Variables, name: str, raw: str, line: int, *, append: bool, in_branch: bool) -> None:
    if in_branch and not append and (name in known.scalars or name in known.arrays):
        return
    if raw.startswith("("):
        inside = [word for one, _ in _tokens(raw[1:-1]) if one != "\n" for word in _expand(one, known, line)]
        known.arrays[name] = (known.arrays.get(name, []) if append else []) + inside
        return
    try:
        value = _value(raw, known)
    except Unknown as error:
        known.unknown[name] = str(error)
        known.scalars.pop(name, None)
        return
    known.scalars[name] = (known.scalars.get(name, "") if append else "") + value
    known.unknown.pop(name, None)


def _expand(raw: str, known: _Variables, line: int) -> list[Word]:
    if raw.strip('"') in {"$@", "$*", "${@}"}:  # whoever starts the script may add words: none are written
        return []
    if found := _ARRAY.fullmatch(raw):
        return known.arrays.get(found[1], [])
    try:
        return [Word(line, _value(raw, known))]
    except Unknown as error:
        return [Word(line, raw, str(error))]


def _value(raw: str, known: _Variables) -> str:
    """A word without its quotes, its variables put in.

    Raises:
        Unknown: only a run could tell.
    """
    found, at, quoted = "", 0, False
    while at < len(raw):
        char = raw[at]
        if char == "'" and not quoted:
            end = _end(raw, "'", at + 1)
            found, at = found + raw[at + 1 : end], end + 1
        elif char == '"':
            quoted, at = not quoted, at + 1
        elif char == "\\":
            keeps = quoted and raw[at + 1 : at + 2] not in {'"', "\\", "$", "`"}
            found, at = found + raw[at if keeps else at + 1 : at + 2], at + 2
        elif char == "~" and not found and not quoted and raw[1:2] in {"", "/"}:
            found, at = found + _parameter("HOME", known), at + 1
        elif char in "$`":
            text, at = _expansion(raw, at, known)
            found += text
        else:
            found, at = found + char, at + 1
    return found


def _expansion(raw: str, at: int, known: _Variables) -> tuple[str, int]:
    """What the `$` or backtick here stands for, and where it ends."""
    if raw.startswith("$((", at):
        end = _nested_end(raw, at + 1)
        return str(_arithmetic(raw[at + 3 : end - 2], known)), end
    if raw.startswith("${", at):
        end = _nested_end(raw, at + 1)
        return _parameter(raw[at + 2 : end - 1], known), end
    name = re.compile(rf"\$({_NAME}|\d)").match(raw, at)
    if name:
        return _parameter(name[1], known), name.end()
    if raw[at] == "$" and not raw.startswith("$(", at):
        return "$", at + 1
    end = _quoted_end(raw, at) if raw[at] == "`" else _nested_end(raw, at + 1)
    raise Unknown(raw[at:end])


def _parameter(text: str, known: _Variables) -> str:
    found = _PARAMETER.fullmatch(text)
    if found is None:
        raise Unknown(f"${{{text}}}")
    name, default = found[1], found[3]
    if name in known.scalars:
        return known.scalars[name]
    if default is not None:
        return _value(default, known)
    raise Unknown(known.unknown.get(name, f"${name}"))


def _arithmetic(text: str, known: _Variables) -> int:
    """An integer expression in the shell's notation: + - * / % and brackets."""
    plain = re.sub(rf"\$?\{{?({_NAME})\}}?", lambda name: _parameter(name[1], known), text).strip()
    try:
        return _integer(ast.parse(plain, mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError):
        raise Unknown(f"$(({text}))") from None


def _integer(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_integer(node.operand)
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_integer(node.left), _integer(node.right))
    raise KeyError(type(node).__name__)
