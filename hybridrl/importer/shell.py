"""The commands of a shell script, read as far as launch scripts need it.

Nothing is executed. A script is followed as bash would: assignments, arrays, functions where they are
called, branches whose condition the script itself decides. A variable that another condition decides, or a
command's output, is unknown from there on, and so is every word that holds it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hybridrl.importer import shell_arithmetic
from hybridrl.importer.shell_assignments import ASSIGNMENT, assign, right_side
from hybridrl.importer.shell_branches import changed_names, merged, said
from hybridrl.importer.shell_builtins import change_folder, declared, names_set, set_arguments, shift, unset
from hybridrl.importer.shell_conditions import is_test, matches, result
from hybridrl.importer.shell_nodes import (
    Apart,
    Arithmetic,
    Case,
    Chain,
    Function,
    If,
    Loop,
    Node,
    Sequence,
    Simple,
)
from hybridrl.importer.shell_syntax import parse
from hybridrl.importer.shell_words import (
    NAME,
    STARTED_WITH,
    Hidden,
    Value,
    Variables,
    Word,
    expand,
    passes,
)

__all__ = ["Command", "Word", "commands"]

_DECLARES = {"export", "local", "readonly", "declare", "typeset"}
_MAKES_LOCAL = {"local", "declare", "typeset"}
_SETS = {"read", "mapfile", "readarray", "getopts", "let", "printf"}
_DEEPEST = 20
"""Calls inside calls that are followed."""


@dataclass(frozen=True, slots=True)
class Command:
    words: tuple[Word, ...]
    condition: str = ""
    """What decides whether it is executed, as "the if of line 3"; empty where nothing does."""

    is_open: bool = False
    """Whether the words with which the script is started are among its own."""


def commands(text: str, variables: Mapping[str, str]) -> list[Command]:
    """Every command that a script executes, or could, in its order, with its words expanded.

    Args:
        variables: what the script finds set: HOME and the like.

    Raises:
        ConfigError: the text is not a script that bash would take.
    """
    run = _Run(Variables(dict(variables)))
    run.follow(parse(text))
    return run.found


class _Run:
    def __init__(self, known: Variables) -> None:
        self.known = known
        self.found: list[Command] = []
        self.condition = ""
        self.returned: list[list[Variables]] = []
        self.locals: list[dict[str, tuple[bool, Value]]] = []
        """For each call that is followed: its local variables, and what was said of them before it."""

    def follow(self, node: Node) -> bool | None:
        """Goes through a part of the script. Returns its result; None: only a run could tell."""
        if self.known.ended:
            return None
        match node:
            case Simple():
                return self._simple(node)
            case Arithmetic():
                self._hide(re.findall(NAME, node.text), f"(({node.text})) of line {node.line}", node.text)
            case Sequence():
                last: bool | None = True
                for part in node.parts:
                    last = self.follow(part)
                return last
            case Chain():
                return self._chain(node)
            case Apart():
                self._apart(node)
            case If():
                return self._if(node)
            case Case():
                self._case(node)
            case Loop():
                self._loop(node)
            case Function():
                self.known.functions[node.name] = node.body
                return True
        return None

    def _hide(self, names: list[str], reason: str, changing: str = "=") -> None:
        if shell_arithmetic.changes(changing):
            for name in names:
                self.known.values[name] = Hidden(f"${name}, set by {reason}")

    def _apart(self, node: Apart) -> None:
        before = self.known
        self.returned.append([])
        for part in node.parts:
            self.known = before.copy()
            self.follow(part)
        self.returned.pop()
        self.known = before

    def _chain(self, node: Chain) -> bool | None:
        status = self.follow(node.parts[0])
        if not node.operators:
            return None
        for before, operator, part in zip(node.parts, node.operators, node.parts[1:], strict=False):
            if status is None:
                told = operator == "||" or is_test(before)
                self._fork(node.line, operator, [lambda part=part: self.follow(part), None], told)
            elif status == (operator == "&&"):
                status = self.follow(part)
        return status

    def _if(self, node: If) -> bool | None:
        status = self.follow(node.condition)
        if status is not None:
            return self.follow(node.then if status else node.otherwise)
        branches: list[Callable[[], object] | None] = [
            lambda: self.follow(node.then),
            lambda: self.follow(node.otherwise),
        ]
        self._fork(node.line, "if", branches)
        return None

    def _case(self, node: Case) -> None:
        tried: list[Node] = []
        for patterns, body in node.branches:
            status = matches(node.word, patterns, self.known)
            if status is not False:
                tried.append(body)
            if status:
                break
        else:
            tried.append(Sequence(()))
        if len(tried) == 1:
            self.follow(tried[0])
        else:
            self._fork(node.line, "case", [lambda one=one: self.follow(one) for one in tried])

    def _fork(
        self, line: int, what: str, branches: list[Callable[[], object] | None], told: bool = True
    ) -> None:
        """Goes through branches of which only a run could tell the one that is taken."""
        before, outer, ends = self.known, self.condition, []
        self.condition = outer or (f"the {what} of line {line}" if told else "")
        for branch in branches:
            self.known = before.copy()
            if branch:
                branch()
            ends.append(self.known)
        self.condition = outer
        self.known = merged(ends, f"{what} of line {line}")

    def _loop(self, node: Loop) -> None:
        """A pass with the first values, whose commands are kept, then passes until no variable changes."""
        items = self._items(node)
        if items == ():
            return
        outer = self.condition
        self.condition = outer or f"the {node.keyword} of line {node.line}"
        hidden: set[str] = set()
        reason = f"the {node.keyword} of line {node.line}"
        kept, before = len(self.found), self.known.copy()
        for turn in range(3 + len(self.known.values)):
            start = self.known.copy()
            if node.name:
                first = items[0].text if items and not turn and not items[0].unknown else None
                self.known.values[node.name] = Hidden(f"${node.name} of {reason}") if first is None else first
            else:
                self.follow(node.head)
            self.follow(node.body)
            self.known.ended = ""
            changed = changed_names(start, self.known) - hidden
            hidden |= changed
            has_moved = self._moved(start, reason)
            if not turn:
                kept = len(self.found)
            for name in hidden:
                self.known.values[name] = Hidden(f"${name}, set by {reason}")
            if turn and not changed and not has_moved:
                break
        del self.found[kept:]
        self.condition = outer
        self.known.functions = merged([before, self.known], reason).functions

    def _moved(self, start: Variables, reason: str) -> bool:
        """Hides the arguments if a pass of a loop changed them. Returns whether they were known before it."""
        if self.known.arguments == start.arguments:
            return False
        self.known.arguments = Hidden(f"the arguments, set by {reason}")
        return not isinstance(start.arguments, Hidden)

    def _items(self, node: Loop) -> tuple[Word, ...] | None:
        """What a `for` goes through, or None where only a run could tell."""
        if not node.name:
            return None
        if not isinstance(node.head, Simple):
            words = self.known.arguments
            return words if isinstance(words, tuple) else None
        if any(passes(raw, self.known) for raw in node.head.words):
            return None
        items = tuple(word for raw in node.head.words for word in expand(raw, self.known, node.line))
        return None if any(word.unknown for word in items) else items

    def _simple(self, node: Simple) -> bool | None:
        words, at = list(node.words), 0
        while at < len(words) and ASSIGNMENT.fullmatch(words[at]):
            at += 1
        if at == len(words):
            self._assign(words, node.line)
            return None if any("$(" in raw or "`" in raw for raw in words) else True
        if words[at] in _DECLARES:
            self._declare(words[at:], node.line)
            return True
        if words[at].startswith("[[ ") or words[at].startswith("[[\n"):
            return result(words[at], self.known, node.line)
        made, passed = [], []
        for raw in words[at:]:
            expanded = expand(raw, self.known, node.line)
            made += expanded
            passed += [*expanded, *([Word(node.line, "$@", STARTED_WITH)] if passes(raw, self.known) else [])]
        if not made:
            return None
        return self._with(words[:at], made, node.line, passed)

    def _assign(self, words: list[str], line: int) -> None:
        for found in filter(None, map(ASSIGNMENT.fullmatch, words)):
            assign(self.known, found, right_side(found, self.known, line), line)

    def _with(self, assignments: list[str], words: list[Word], line: int, passed: list[Word]) -> bool | None:
        """Follows a command with the assignments before it, which hold while it runs."""
        if not (words[0].text in self.known.functions or words[0].text == "eval"):
            return self._command(words, line, passed)  # a process of its own: its environment is not ours
        names = [re.split(r"[+=\[]", raw)[0] for raw in assignments]
        before = {name: said(self.known, name) for name in names}
        self._assign(assignments, line)
        status = self._command(words, line, passed)
        self._restore(before)
        return status

    def _command(self, words: list[Word], line: int, passed: list[Word]) -> bool | None:
        """
        Args:
            passed: the words, with one that is unknown wherever those with which the script is started are.
        """
        is_open = len(passed) > len(words)
        arguments = None if is_open and not words[1:] else tuple(passed[1:])
        name, rest = ("" if words[0].unknown else words[0].text), words[1:]
        if name in {"true", ":", "false"}:
            return name != "false"
        if name in {"exit", "return", "break", "continue"}:
            if name == "return" and self.returned:
                self.returned[-1].append(self.known.copy())
            self.known.ended = name
        elif name in {"[", "test"}:
            return result(words, self.known, line)
        elif name in self.known.functions:
            self._call(name, arguments, line)
        elif name == "unset":
            unset(self.known, rest)
        elif name in _SETS:
            self._hide(names_set(name, rest), f"{name} of line {line}")
            if name == "printf":
                self.found.append(Command(tuple(words), self.condition))
        elif name == "set":
            set_arguments(self.known, passed[1:])
        elif name == "shift":
            shift(self.known, rest)
        elif name == "cd":
            change_folder(self.known, rest, line)
        elif name == "eval" and not any(word.unknown for word in rest):
            return self.follow(parse(" ".join(word.text for word in rest)))
        else:
            self.found.append(Command(tuple(words), self.condition, is_open))
            if name == "exec" and rest:  # without a command it redirects the script's own output
                self.known.ended = "exit"
        return None

    def _declare(self, words: list[str], line: int) -> None:
        options = "".join(word for word in words[1:] if word[0] in "-+")
        makes_local = words[0] in _MAKES_LOCAL and not set(options) & set("fFgp") and self.locals
        # All words are expanded before the first variable is set
        given = [one for raw in words[1:] if raw[0] not in "-+" for one in self._given(raw, line)]
        for text, found, right in given:
            name = re.split(r"[+=\[]", text)[0]
            if makes_local:
                self._make_local(name, is_set=text.startswith(f"{name}="))
            if found:
                assign(self.known, found, right, line)
            elif "=" in text:
                self.known.values[name] = right
            if set(options) & set("Ailnu"):
                self.known.declared[name] = f"${name}, declared with {options} on line {line}"
                self.known.values[name] = Hidden(self.known.declared[name])

    def _given(self, raw: str, line: int) -> list[tuple[str, re.Match[str] | None, Value]]:
        """Text, assignment if it is written as one, and right side of each word that `declare` is given."""
        if found := ASSIGNMENT.fullmatch(raw):
            return [(raw, found, right_side(found, self.known, line))]
        is_open = passes(raw, self.known)
        return [(one.text, None, declared(one, is_open=is_open)) for one in expand(raw, self.known, line)]

    def _make_local(self, name: str, *, is_set: bool) -> None:
        """Notes a local variable; without a value, it is unset from here on, unless it was local already."""
        values = self.known.values
        if name not in self.locals[-1]:
            self.locals[-1][name] = said(self.known, name)
            if not is_set:
                values[name] = None
        elif not is_set:
            values[name] = Hidden(f"${name}, which is made local twice")

    def _call(self, function: str, arguments: tuple[Word, ...] | None, line: int) -> None:
        body = self.known.functions[function]
        if body is None or len(self.locals) >= _DEEPEST:
            for one in self.known.values:
                self.known.values[one] = Hidden(f"${one}, which {function} of line {line} may set")
            return
        before = self.known.arguments
        self.known.arguments = arguments
        self.locals.append({})
        self.returned.append([])
        self.follow(body)
        ends = self.returned.pop()
        if self.known.ended == "return":
            self.known.ended = ""
        else:
            ends.append(self.known)
        if ends:
            self.known = merged([end.copy() for end in ends], f"{function} of line {line}")
        self._restore(self.locals.pop())
        self.known.arguments = before

    def _restore(self, before: Mapping[str, tuple[bool, Value]]) -> None:
        for name, (is_said, old) in before.items():
            self.known.values.pop(name, None)
            if is_said:
                self.known.values[name] = old
