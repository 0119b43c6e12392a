"""The result of an import: what was translated, what has no counterpart, what does not change the result."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridrl.config import strict_yaml

_WIDTH = 100
"""Characters of a line; a longer section is written as a block."""


@dataclass(frozen=True, slots=True)
class Line:
    """A key of our config and the source of its value."""

    key: str
    """The dotted key."""

    value: Any
    source: str
    """What the script sets, as data.train_batch_size=1024."""

    note: str = ""
    """How its meaning differs, or who chose the value."""


@dataclass(frozen=True, slots=True)
class Remark:
    source: str
    why: str
    """The reason, and what to do if something has to be done."""


@dataclass(frozen=True, slots=True)
class Translation:
    translated: tuple[Line, ...]
    no_counterpart: tuple[Remark, ...]
    ignored: tuple[Remark, ...]
    no_line: tuple[Remark, ...] = ()
    """Settings that our defaults say anyway, or that are read together with a translated one."""

    def tree(self) -> dict[str, Any]:
        """The config as nested mappings."""
        tree: dict[str, Any] = {}
        for line in self.translated:
            *sections, name = line.key.split(".")
            inner = tree
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[name] = line.value
        return tree

    def as_yaml(self, head: str) -> str:
        """The config as a file; `head` becomes its first comment."""
        notes = {line.key: line.note for line in self.translated if line.note.startswith("check")}
        return "\n".join([f"# {head}", *_sections(self.tree(), notes), ""])

    def as_dict(self) -> dict[str, Any]:
        """The translation as values for a program."""
        return {
            "config": self.tree(),
            "translated": [
                {"key": line.key, "value": line.value, "from": line.source, "note": line.note}
                for line in self.translated
            ],
            "no_counterpart": [{"from": one.source, "why": one.why} for one in self.no_counterpart],
            "ignored": [{"from": one.source, "why": one.why} for one in self.ignored],
            "no_line": [{"from": one.source, "why": one.why} for one in self.no_line],
        }

    def report(self) -> Iterator[tuple[str, Sequence[tuple[str, str, str]]]]:
        """Headings and their rows: the file's setting, our setting, the reason."""
        yield (
            "translated",
            [
                (line.source, f"{line.key}: {strict_yaml.inline(line.value)}", line.note)
                for line in self.translated
            ],
        )
        yield "no line of their own", [(one.source, "", one.why) for one in self.no_line]
        yield "no counterpart", [(one.source, "", one.why) for one in self.no_counterpart]
        yield "ignored, the result is the same", [(one.source, "", one.why) for one in self.ignored]


def _sections(tree: Mapping[str, Any], notes: Mapping[str, str], path: str = "") -> Iterator[str]:
    indent = "  " * path.count(".")
    for name, value in tree.items():
        key = f"{path}{name}"
        comment = f"    # {notes[key]}" if key in notes else ""
        flat = f"{indent}{name}: {strict_yaml.inline(value)}"
        inside = any(one.startswith(f"{key}.") for one in notes)
        if isinstance(value, dict) and (len(flat) > _WIDTH or inside):
            yield f"{indent}{name}:{comment}"
            yield from _sections(value, notes, f"{key}.")
        else:
            yield flat + comment
