"""The parts of a parsed shell script."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Simple:
    line: int
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The command (( )), or the head of a loop over numbers."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """Commands one after the other."""

    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """Commands joined by && and ||; operators[i] stands before parts[i + 1]."""

    line: int
    parts: tuple["Node", ...]
    operators: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Apart:
    """Commands in processes of their own, which change no variable of the script: a pipe, ( ), or &."""

    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class If:
    line: int
    condition: "Node"
    then: "Node"
    otherwise: "Node"


@dataclass(frozen=True, slots=True)
class Case:
    line: int
    word: str
    branches: tuple[tuple[tuple[str, ...], "Node"], ...]


@dataclass(frozen=True, slots=True)
class Loop:
    line: int
    keyword: str
    name: str
    """The variable of a `for` over words; empty for the others."""

    head: "Node"
    body: "Node"


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    body: "Node"


Node = Simple | Arithmetic | Sequence | Chain | Apart | If | Case | Loop | Function
