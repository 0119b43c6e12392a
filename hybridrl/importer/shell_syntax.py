"""The grammar of a shell script, as far as launch scripts need it: commands, branches, loops, functions.

The parser only takes the text apart. Words stay as written, with their quotes; a here-document is part of
no word, for it is text that another program reads.
"""

import re
from dataclasses import dataclass, field

from hybridrl.errors import ConfigError
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
from hybridrl.importer.shell_quotes import end_of, nested_end, piece_end

_REDIRECTION = re.compile(r"(?:\d+|\{\w+\})?(?:<<<|<<-|<<|<>|<&|>&|>>|>\||<(?!\()|>(?!\())|&>>|&>")
_OPERATOR = re.compile(r";;&|;;|;&|&&|\|\||\|&|[;&|()\n]")
_ARRAY = re.compile(r"[A-Za-z_]\w*(?:\[[^]\n]*\])?\+?=")
_CLOSERS = {"then", "else", "elif", "fi", "do", "done", "esac", "}", ")", ";;", ";&", ";;&"}


def parse(text: str) -> Sequence:
    """
    Raises:
        ConfigError: a quote, a bracket or a branch is not closed.
    """
    # The line break matters after a last backslash, which continues the line with nothing.
    reader = _Reader(text.replace("\r\n", "\n") + "\n")
    found = reader.sequence()
    if reader.peek():
        raise reader.error(f"{reader.peek()!r} closes nothing")
    return found


def words_of(text: str) -> list[str]:
    """The words of an array, without the comments."""
    reader, words = _Reader(text), []
    while token := reader.take():
        if token != "\n":
            words.append(token)
    return words


@dataclass(slots=True)
class _Reader:
    text: str
    at: int = 0
    documents: list[tuple[str, bool]] = field(default_factory=list)
    """End mark of each here-document that begins after this line, and whether tabs before it count not."""

    @property
    def line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1

    def error(self, what: str) -> ConfigError:
        return ConfigError(
            f"the script cannot be read: {what}",
            where=f"line {self.line}",
            fix="correct it, or give a file of key=value lines",
        )

    def peek(self) -> str:
        """The next word or operator, or nothing at the end."""
        at, documents = self.at, list(self.documents)
        token = self.take()
        self.at, self.documents = at, documents
        return token

    def take(self) -> str:
        self.blanks()
        if found := _REDIRECTION.match(self.text, self.at) or _OPERATOR.match(self.text, self.at):
            self.at = found.end()
            if found[0] == "\n":
                self.skip_documents()
            return found[0]
        return self.word()

    def blanks(self) -> None:
        while self.at < len(self.text):
            if self.text.startswith("\\\n", self.at):
                self.at += 2
            elif self.text[self.at] == "#":
                self.at = end_of(self.text, "\n", self.at)
            elif self.text[self.at] in " \t\r":
                self.at += 1
            else:
                return

    def word(self) -> str:
        found = ""
        while self.at < len(self.text) and (self.text[self.at] not in " \t\r\n;|&()<>" or self.is_process()):
            if self.text.startswith("\\\n", self.at):
                self.at += 2
                continue
            end = self.piece()
            found, self.at = found + self.text[self.at : end], end
            if _ARRAY.fullmatch(found) and self.text.startswith("(", self.at):
                end = self.nested(self.at)
                found, self.at = found + self.text[self.at : end], end
        return found

    def is_process(self) -> bool:
        return self.text.startswith(("<(", ">("), self.at)

    def piece(self) -> int:
        """The position after the quoted, nested or single character that begins here."""
        if self.text.startswith(("$(", "${", "<(", ">("), self.at):
            return self.nested(self.at + 1)
        end = piece_end(self.text, self.at)
        if end > len(self.text):
            raise self.error(f"{self.text[self.at : self.at + 20]!r} is not closed")
        return end

    def nested(self, at: int) -> int:
        end = nested_end(self.text, at)
        if end > len(self.text):
            raise self.error(f"{self.text[self.at : self.at + 20]!r} is not closed")
        return end

    def skip_documents(self) -> None:
        """Passes over the here-documents that the line before announced."""
        for mark, tabs in self.documents:
            while self.at < len(self.text):
                end = end_of(self.text, "\n", self.at)
                one = self.text[self.at : end]
                self.at = end + 1
                if (one.lstrip("\t") if tabs else one) == mark:
                    break
        self.at, self.documents = min(self.at, len(self.text)), []

    def newlines(self) -> None:
        while self.peek() == "\n":
            self.take()

    def expect(self, *wanted: str) -> str:
        self.newlines()
        token = self.take()
        if token not in wanted:
            raise self.error(f"{token!r} stands where {' or '.join(wanted)} has to")
        return token

    def sequence(self) -> Sequence:
        parts: list[Node] = []
        while True:
            while self.peek() in {"\n", ";"}:
                self.take()
            if not self.peek() or self.peek() in _CLOSERS:
                return Sequence(tuple(parts))
            found = self.chain()
            if self.peek() == "&":
                self.take()
                found = Apart((found,))
            parts.append(found)

    def chain(self) -> Node:
        line, parts, operators = self.line, [self.pipe()], []
        while self.peek() in {"&&", "||"}:
            operators.append(self.take())
            self.newlines()
            parts.append(self.pipe())
        return Chain(line, tuple(parts), tuple(operators)) if operators else parts[0]

    def pipe(self) -> Node:
        negated = self.peek() == "!"
        if negated or self.peek() == "time":
            self.take()
        parts = [self.command()]
        while self.peek() in {"|", "|&"}:
            self.take()
            self.newlines()
            parts.append(self.command())
        found = Apart(tuple(parts)) if len(parts) > 1 else parts[0]
        # What `!` makes of the result is left open: a chain of one command has no known result
        return Chain(self.line, (found,), ()) if negated else found

    def command(self) -> Node:
        self.blanks()
        special = {
            "if": self.branches,
            "case": self.case,
            "for": self.loop,
            "select": self.loop,
            "while": self.loop,
            "until": self.loop,
            "{": self.group,
            "(": self.group,
            "function": self.function,
        }
        if self.text.startswith("((", self.at):
            return self.arithmetic()
        token = self.peek()
        if token in special:
            found = special[token]()
            self.redirections()
            return found
        if re.match(r"[\w.:-]+[ \t]*\([ \t]*\)", self.text[self.at : self.at + 200]):
            return self.function()
        return self.simple()

    def arithmetic(self) -> Arithmetic:
        line, end = self.line, self.nested(self.at)
        text, self.at = self.text[self.at + 2 : end - 2], end
        return Arithmetic(line, text)

    def simple(self) -> Simple:
        self.blanks()
        line, words = self.line, []
        while True:
            self.blanks()
            if self.text.startswith("[[", self.at) and not words:
                words.append(self.test())
                continue
            token = self.peek()
            if not token or _OPERATOR.fullmatch(token):
                break
            if _REDIRECTION.fullmatch(token):
                self.redirections()
                continue
            words.append(self.take())
        if not words and self.peek() and self.peek() != "\n" and self.at < len(self.text):
            token = self.peek()
            if token in {"&&", "||", "|", "(", ")", ";;"} and not self.documents:
                raise self.error(f"{token!r} stands where a command has to")
        return Simple(line, tuple(words))

    def test(self) -> str:
        """The whole of [[ ]], in which the shell's operators are ordinary words."""
        begin = self.at
        while not re.compile(r"\s\]\]").match(self.text, self.at):
            if self.at >= len(self.text):
                raise self.error("[[ is not closed")
            self.at = self.piece()
        self.at += 3
        return self.text[begin : self.at]

    def redirections(self) -> None:
        while _REDIRECTION.fullmatch(token := self.peek()):
            self.take()
            self.blanks()
            target = self.word()
            if token.endswith(("<<", "<<-")) and not token.endswith("<<<"):
                self.documents.append((re.sub(r"['\"\\]", "", target), token.endswith("-")))

    def branches(self) -> If:
        line = self.line
        self.take()
        condition = self.sequence()
        self.expect("then")
        then, otherwise = self.sequence(), Sequence(())
        self.newlines()
        if self.peek() == "elif":
            return If(line, condition, then, self.branches())
        if self.peek() == "else":
            self.take()
            otherwise = self.sequence()
        self.expect("fi")
        return If(line, condition, then, otherwise)

    def case(self) -> Case:
        line = self.line
        self.take()
        word, branches = self.take(), []
        self.expect("in")
        self.newlines()
        while self.peek() != "esac":
            if self.peek() == "(":
                self.take()
            patterns = [self.take()]
            while self.expect("|", ")") == "|":
                patterns.append(self.take())
            branches.append((tuple(patterns), self.sequence()))
            self.newlines()
            if self.peek() != "esac" and self.expect(";;", ";&", ";;&") != ";;":
                raise self.error("a case that falls through is not read")
            self.newlines()
        self.take()
        return Case(line, word, tuple(branches))

    def loop(self) -> Loop:
        line, keyword, name = self.line, self.take(), ""
        head: Node = Sequence(())
        self.blanks()
        if keyword in {"while", "until"}:
            head = self.sequence()
        elif self.text.startswith("((", self.at):
            head = self.arithmetic()
        else:
            name = self.take()
            self.newlines()
            if self.peek() == "in":
                self.take()
                head = self.simple()
        while self.peek() in {"\n", ";"}:
            self.take()
        self.expect("do")
        body = self.sequence()
        self.expect("done")
        return Loop(line, keyword, name, head, body)

    def group(self) -> Node:
        opening = self.take()
        found = self.sequence()
        self.expect({"{": "}", "(": ")"}[opening])
        return found if opening == "{" else Apart((found,))

    def function(self) -> Function:
        if self.peek() == "function":
            self.take()
        name = self.take()
        if self.peek() == "(":
            self.take()
            self.expect(")")
        self.newlines()
        return Function(name, self.command())
