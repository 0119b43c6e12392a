"""Expands words of a shell script as bash does: variables, defaults, arrays, quotes, splitting.

Nothing is executed. The part of a word that only a run could tell stays as written, and the word says which
part that is.
"""

import re
from dataclasses import dataclass, field, replace

from hybridrl.importer import shell_arithmetic
from hybridrl.importer.shell_nodes import Node
from hybridrl.importer.shell_quotes import end_of, nested_end, piece_end, quoted_end

NAME = r"[A-Za-z_]\w*"
_PARAMETER = re.compile(rf"({NAME}|\d+)(?:(:?)([-=+?])(.*))?", re.DOTALL)
_ELEMENTS = re.compile(rf"(?:({NAME})\[)?([@*])\]?")
_ELEMENT = re.compile(rf"({NAME})\[(\d+)\]")
STARTED_WITH = "the words with which the script is started"
_CHANGES_BY_ITSELF = {"RANDOM", "SECONDS", "LINENO", "HOSTNAME", "UID", "EUID", "PPID", "BASHPID", "SHLVL"}


class Unknown(Exception):
    """A value that only a run of the script could tell; the message is the part that is to blame."""


@dataclass(frozen=True, slots=True)
class Word:
    line: int = field(compare=False)
    """Line on which its command begins, counted from 1."""

    text: str
    """Expanded; a part that is unknown is as written."""

    unknown: str = ""
    """The part that only a run could tell."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """The value of a variable that only a run could tell."""

    reason: str


Value = str | tuple[Word, ...] | Hidden | None
"""Value of a variable: text, an array, one that only a run could tell, or None where the script unset it."""


@dataclass(slots=True)
class Variables:
    values: dict[str, Value]
    functions: dict[str, Node | None] = field(default_factory=dict)
    """Functions by name. None: which of several it is depends on a branch."""

    arguments: tuple[Word, ...] | Hidden | None = None
    """$1 and so on. None: those with which the script is started."""

    declared: dict[str, str] = field(default_factory=dict)
    """Variables that `declare` gave a way of their own to take a value, and where."""

    ended: str = ""
    """exit, return or break where no further command of this branch is executed."""

    def copy(self) -> "Variables":
        return replace(
            self, values=dict(self.values), functions=dict(self.functions), declared=dict(self.declared)
        )

    def find(self, name: str) -> tuple[bool, Value]:
        """Whether the script or its start says anything of the variable, and its value."""
        if name in _CHANGES_BY_ITSELF and name not in self.values:
            return True, Hidden(f"${name}")
        if not name.isdigit():
            return name in self.values, self.values.get(name)
        if isinstance(self.arguments, Hidden) or name == "0":
            return True, Hidden(f"${name}")
        if self.arguments is None:
            return False, None
        place = int(name) - 1
        if any(word.unknown == STARTED_WITH for word in self.arguments[: place + 1]):
            return True, Hidden(STARTED_WITH)
        return True, self.arguments[place : place + 1] if place < len(self.arguments) else None


def passes(raw: str, known: Variables) -> bool:
    """Whether the words with which the script is started are part of a word."""
    return known.arguments is None and bool(re.search(r"\$\{?[@*]", raw))


def expand(raw: str, known: Variables, line: int) -> list[Word]:
    """The words that bash makes of one word as written: none, one or several."""
    fields = _Fields(line)
    _walk(raw, fields, known)
    fields.close()
    return fields.done


def value(raw: str, known: Variables) -> str:
    """The text of a word that is never split: the right side of an assignment and the like.

    Raises:
        Unknown: only a run could tell it.
    """
    fields = _Fields(0, splits=False)
    _walk(raw, fields, known)
    if fields.unknown:
        raise Unknown(fields.unknown)
    return fields.text or ""


@dataclass(slots=True)
class _Fields:
    line: int
    splits: bool = True
    done: list[Word] = field(default_factory=list)
    text: str | None = None
    """The word that is being made. None: nothing has been said of it yet."""

    unknown: str = ""

    def add(self, text: str) -> None:
        self.text = (self.text or "") + text

    def hide(self, written: str, blame: str) -> None:
        self.add(written)
        self.unknown = self.unknown or blame

    def put(self, text: str, known: Variables, quoted: bool) -> None:
        """Adds a result of an expansion, which is split at blanks unless it is quoted."""
        if quoted or not self.splits:
            self.add(text)
        elif "IFS" in known.values:
            self.hide(text, "how IFS splits it")
        else:
            for piece in re.findall(r"[ \t\n]+|[^ \t\n]+", text):
                self.close() if piece.isspace() else self.add(piece)

    def close(self) -> None:
        if self.text is not None:
            self.done.append(Word(self.line, self.text, self.unknown))
        self.text, self.unknown = None, ""


def _walk(
    raw: str, fields: _Fields, known: Variables, *, quoted: bool = False, is_default: bool = False
) -> None:
    at = 0
    while at < len(raw):
        char = raw[at]
        if raw.startswith("\\\n", at):
            at += 2
        elif char == "\\":
            keeps = quoted and raw[at + 1 : at + 2] not in {'"', "\\", "$", "`"}
            fields.add(raw[at if keeps else at + 1 : at + 2])
            at += 2
        elif char == '"':
            at = at + 1 if quoted else _quotes(raw, at, fields, known)
        elif char in "$`":
            at = _dollar(raw, at, fields, known, quoted)
        elif quoted:
            fields.add(char)
            at += 1
        else:
            at = _bare(raw, at, fields, known, is_default)


def _quotes(raw: str, at: int, fields: _Fields, known: Variables) -> int:
    end = quoted_end(raw, at)
    content = raw[at + 1 : end - 1]
    if not (found := _ELEMENTS.fullmatch(content[2:-1] if content.startswith("${") else content[1:])) or (
        found[2] == "*" or content[:1] != "$"
    ):
        fields.add("")
    _walk(content, fields, known, quoted=True)
    return end


def _bare(raw: str, at: int, fields: _Fields, known: Variables, is_default: bool) -> int:
    """A character outside of quotes, or what single quotes, a tilde or braces begin."""
    char = raw[at]
    if char == "'":
        end = end_of(raw, "'", at + 1)
        fields.add(raw[at + 1 : end])
        return end + 1
    before = raw[:at]
    if char == "~" and (
        not before or re.fullmatch(rf"{NAME}=", before) or before[-1] == ":" and not fields.splits
    ):
        return _tilde(raw, at, fields, known)
    if char == "{" and fields.splits and not is_default:
        end = nested_end(raw, at)
        if end <= len(raw) and re.search(r",|\.\.", raw[at:end]):
            fields.hide(raw[at:end], f"the braces {raw[at:end]}")
            return end
    if raw.startswith(("<(", ">("), at):
        end = nested_end(raw, at + 1)
        fields.hide(raw[at:end], raw[at:end])
        return end
    if is_default:
        fields.put(char, known, quoted=False)
    else:
        fields.add(char)
    return at + 1


def _tilde(raw: str, at: int, fields: _Fields, known: Variables) -> int:
    user = re.compile(r"~[\w.-]*").match(raw, at)
    written = user[0] if user else "~"
    if written == "~" and raw[at + 1 : at + 2] in {"", "/", ":"}:
        home = known.values.get("HOME")
        fields.add(home) if isinstance(home, str) else fields.hide("~", "$HOME")
    elif raw.startswith("/", at + len(written)):
        fields.hide(written, written)
    else:  # Hydra's sign that a key is taken away: bash leaves it, for no user is called so
        fields.add(written)
    return at + len(written)


def _dollar(raw: str, at: int, fields: _Fields, known: Variables, quoted: bool) -> int:
    """Adds what the `$` or backtick here stands for; says where it ends."""
    if raw[at] == "`" or (raw.startswith("$(", at) and not raw.startswith("$((", at)):
        end = quoted_end(raw, at) if raw[at] == "`" else nested_end(raw, at + 1)
        fields.hide(raw[at:end], raw[at:end])
        return end
    if raw.startswith("$((", at):
        end = nested_end(raw, at + 1)
        written = raw[at:end]
        try:
            fields.put(str(arithmetic(written[3:-2], known)), known, quoted)
        except Unknown:
            fields.hide(written, written)
        return end
    if raw.startswith("${", at):
        end = nested_end(raw, at + 1)
        _braced(raw[at + 2 : end - 1], fields, known, quoted)
        return end
    if raw.startswith(('$"', "$'"), at) and not quoted:
        return _ansi(raw, at, fields)
    if name := re.compile(rf"\$({NAME}|\d|[@*])").match(raw, at):
        _braced(name[1], fields, known, quoted, written=name[0])
        return name.end()
    if special := re.compile(r"\$[#?$!_[-]").match(raw, at):
        fields.hide(special[0], special[0])
        return special.end()
    fields.add("$")
    return at + 1


def _ansi(raw: str, at: int, fields: _Fields) -> int:
    """$'...' without escapes is text, and $"..." is the same as "..."."""
    if raw[at + 1] == '"':
        return at + 1
    end = piece_end(raw, at)
    if "\\" in raw[at:end]:
        fields.hide(raw[at:end], raw[at:end])
    else:
        fields.add(raw[at + 2 : end - 1])
    return end


def _braced(text: str, fields: _Fields, known: Variables, quoted: bool, written: str = "") -> None:
    """Adds what ${text} stands for."""
    written = written or f"${{{text}}}"
    if several := _ELEMENTS.fullmatch(text):
        _elements(several[1], several[2], fields, known, quoted, written)
        return
    if one := _ELEMENT.fullmatch(text):
        array = known.values.get(one[1])
        if isinstance(array, tuple) and int(one[2]) < len(array):
            _add_word(array[int(one[2])], fields, known, quoted, written)
        else:
            fields.hide(written, written)
        return
    found = _PARAMETER.fullmatch(text)
    if found is None:
        fields.hide(written, written)
        return
    _parameter(found, fields, known, quoted, written)


def _parameter(found: re.Match[str], fields: _Fields, known: Variables, quoted: bool, written: str) -> None:
    name, colon, operator, word = found.groups()
    is_said, current = known.find(name)
    if isinstance(current, tuple):
        current = (Hidden(current[0].unknown) if current[0].unknown else current[0].text) if current else None
    if isinstance(current, Hidden):
        fields.hide(written, current.reason)
        return
    holds = current is not None and not (colon and not current)
    if operator == "+" and is_said:
        if holds:
            _walk(word, fields, known, quoted=quoted, is_default=not quoted)
    elif operator in {"-", "="} and not holds:
        if operator == "-":
            _walk(word, fields, known, quoted=quoted, is_default=not quoted)
            return
        try:
            known.values[name] = current = value(word, known)
            fields.put(current, known, quoted)
        except Unknown as error:
            known.values[name] = Hidden(str(error))
            fields.hide(written, str(error))
    elif holds or (operator is None and is_said):
        fields.put(current or "", known, quoted)
    else:
        fields.hide(written, written)


def _elements(
    name: str | None, which: str, fields: _Fields, known: Variables, quoted: bool, written: str
) -> None:
    """Adds the elements of an array, or the arguments."""
    words = known.values.get(name) if name else known.arguments
    if isinstance(words, Hidden):
        fields.hide(written, words.reason)
        return
    if name and words is None and name not in known.values:
        fields.hide(written, written)
        return
    words = (Word(0, words),) if isinstance(words, str) else words or ()
    if quoted and which == "*" and "IFS" in known.values:
        fields.hide(written, "how IFS joins it")
        return
    for at, word in enumerate(words):
        if at and (not fields.splits or (quoted and which == "*")):
            fields.add(" ")
        elif at:
            fields.close()
        _add_word(word, fields, known, quoted, word.text)


def _add_word(word: Word, fields: _Fields, known: Variables, quoted: bool, written: str) -> None:
    if word.unknown:
        fields.hide(written, word.unknown)
    else:
        fields.put(word.text, known, quoted)


def arithmetic(text: str, known: Variables) -> int:
    """The value of an integer expression.

    Raises:
        Unknown: only a run could tell it, or it is of a kind that is not read.
    """
    if shell_arithmetic.changes(text):
        for name in re.findall(NAME, text):
            known.values[name] = Hidden(f"$(({text}))")
        raise Unknown(f"$(({text}))")

    def bare(found: re.Match[str]) -> str:
        if found[0].startswith("$"):
            return value(found[0], known)
        return f"({value('$' + found[0], known) or 0})"

    plain = re.sub(rf"\$\{{[^}}]*\}}|\$\w+|(?<![\w$]){NAME}", bare, text)
    found = shell_arithmetic.evaluate(plain)
    if found is None:
        raise Unknown(f"$(({text}))")
    return found
