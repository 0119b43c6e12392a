"""Rewrites renamed keys in the text of a config: what is not renamed keeps its bytes, comments included.

The text is edited at the places that the YAML parser gives, and the result is parsed again: if it is not the
config that was meant, nothing is written.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hybridrl.config import renamed, strict_yaml
from hybridrl.config.files import atomic_write
from hybridrl.config.load import read
from hybridrl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Migrated:
    """A config in today's spelling."""

    text: str
    changes: tuple[str, ...]
    """A line for each key that was rewritten; () if none was."""


def migrated(path: Path) -> Migrated:
    """The text of a file in today's spelling; the file stays as it is.

    Raises:
        ConfigError: the file is missing, not YAML, or written so that it has to be edited by hand.
    """
    read(path)  # says what is wrong with the path
    written = path.read_bytes().decode("utf-8")
    found = rewritten(written.replace("\r\n", "\n"), str(path), renamed.RENAMED)
    if not found.changes:
        return Migrated(written, ())
    windows = written.count("\r\n")
    if windows and windows != written.count("\n"):
        raise ConfigError(found.changes[0], where=str(path), fix="edit it by hand: its line ends are mixed")
    return Migrated(found.text.replace("\n", "\r\n") if windows else found.text, found.changes)


def rewritten(text: str, file: str, table: Sequence[renamed.Renamed]) -> Migrated:
    """The text with the keys of a table in their new spelling; otherwise as `migrated`."""
    changes = []
    for entry, value in renamed.in_tree(strict_yaml.parse(text, file).tree, table):
        before = strict_yaml.parse(text, file)
        change = renamed.described(entry, value)
        where = f"{file}:{before.line[tuple(entry.old.split('.'))]}"
        try:
            meant = renamed.without(before.tree, entry.old)
            for key, new in entry.spelled(value).items():
                meant = renamed.with_key(meant, key, new)
            text = _edited(text, file, entry, value)
            found = strict_yaml.parse(text, file).tree
        except (ConfigError, _ByHand) as error:
            raise ConfigError(change, where=where, fix=f"edit it by hand: {error}") from error
        if _plain(found) != _plain(meant):
            raise ConfigError(
                change, where=where, fix="edit it by hand: its YAML is written in a special way"
            )
        changes.append(change)
    return Migrated(text, tuple(changes))


def replace_file(path: Path, text: str) -> None:
    """Write a file in one step: it holds the old text or the new one, whatever happens; its mode stays.

    Raises:
        ConfigError: it cannot be written.
    """
    path = path.resolve()  # a link stays a link
    try:
        atomic_write(path, text)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", fix="check who owns it") from error


class _ByHand(Exception):
    """The text is written in a way that this file does not edit."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A key and its value in a mapping."""

    parent: yaml.MappingNode
    at: int

    @property
    def key(self) -> yaml.Node:
        return self.parent.value[self.at][0]

    @property
    def value(self) -> yaml.Node:
        return self.parent.value[self.at][1]


def _edited(text: str, file: str, entry: renamed.Renamed, value: Any) -> str:
    found, new = _find(text, file, entry.old), entry.spelled(value)
    assert found is not None
    section, _, _ = entry.old.rpartition(".")
    if len(new) == 1:
        ((key, written),) = new.items()
        above, _, name = key.rpartition(".")
        if above == section:  # it stays where it is
            start, end = found.key.start_mark.index, _end(found.value)
            if written == value:
                return text[:start] + name + text[found.key.end_mark.index :]
            _refuse_comments(text[start:end])
            return text[:start] + _flow(name, written) + text[end:]
    text, comment = _removed(text, found)
    for key, written in new.items():
        text, comment = _inserted(text, file, key, written, comment), ""
    return text


def _find(text: str, file: str, dotted: str) -> _Entry | None:
    node, entry = strict_yaml.compose(text, file), None
    for name in dotted.split("."):
        if not isinstance(node, yaml.MappingNode):
            return None
        names = [key.value for key, _ in node.value]
        if name not in names:
            return None
        entry = _Entry(node, names.index(name))
        node = entry.value
    return entry


def _removed(text: str, found: _Entry) -> tuple[str, str]:
    """The text without an entry, and the comment behind it."""
    start, end = found.key.start_mark.index, _end(found.value)
    if found.parent.flow_style:
        entries = found.parent.value
        if found.at + 1 < len(entries):
            end = entries[found.at + 1][0].start_mark.index
        elif found.at:
            start = _end(entries[found.at - 1][1])
        _refuse_comments(text[start:end])
        return text[:start] + text[end:], ""
    _refuse_comments(text[start:end])
    start, stop = text.rfind("\n", 0, start) + 1, _line_end(text, end)
    behind = text[end:stop].strip()
    if behind and not behind.startswith("#"):
        raise _ByHand("something else stands on its line")
    return text[:start] + text[min(stop + 1, len(text)) :], behind


def _refuse_comments(removed: str) -> None:
    """What is written anew would lose them."""
    if re.search(r"(^|\s)#", removed):
        raise _ByHand("there are comments inside it")


def _inserted(text: str, file: str, dotted: str, value: Any, comment: str) -> str:
    """The text with a key that is not there yet, in the deepest section above it that is."""
    names = dotted.split(".")
    for depth in range(len(names) - 1, 0, -1):
        if found := _find(text, file, ".".join(names[:depth])):
            return _inside(text, found, names[depth:], value, comment)
    root = strict_yaml.compose(text, file)
    if isinstance(root, yaml.MappingNode) and root.flow_style:
        return _inside_flow(text, root, names, value)
    newline = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{newline}{_block(names, value, '', comment)}\n"


def _inside(text: str, section: _Entry, names: list[str], value: Any, comment: str) -> str:
    node = section.value
    if isinstance(node, yaml.MappingNode) and node.flow_style:
        return _inside_flow(text, node, names, value)
    if isinstance(node, yaml.MappingNode):
        indent, after = node.value[0][0].start_mark.column, _end(node.value[-1][1])
    elif node.tag.endswith(":null"):
        indent, after = section.key.start_mark.column + 2, _end(node)
    else:
        raise _ByHand(f"{section.key.value} is written in its short form")
    at = _line_end(text, after)
    return f"{text[:at]}\n{_block(names, value, ' ' * indent, comment)}{text[at:]}"


def _inside_flow(text: str, node: yaml.MappingNode, names: list[str], value: Any) -> str:
    for name in reversed(names[1:]):
        value = {name: value}
    if node.value:
        at = _end(node.value[-1][1])
        return f"{text[:at]}, {_flow(names[0], value)}{text[at:]}"
    at = node.start_mark.index + 1
    return f"{text[:at]}{_flow(names[0], value)}{text[at:]}"


def _block(names: list[str], value: Any, indent: str, comment: str) -> str:
    lines = [f"{indent}{'  ' * depth}{name}:" for depth, name in enumerate(names[:-1])]
    last = f"{indent}{'  ' * (len(names) - 1)}{_flow(names[-1], value)}"
    return "\n".join([*lines, f"{last}  {comment}" if comment else last])


def _flow(name: str, value: Any) -> str:
    """The entry of a mapping on one line, which holds inside braces too."""
    return strict_yaml.inline({name: value})[1:-1]


def _end(node: yaml.Node) -> int:
    """The place behind the last character of a value. A block reaches, for the parser, up to what follows."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    end = node.end_mark.index
    if isinstance(node, yaml.ScalarNode) and node.style in {"|", ">"}:
        return len((node.end_mark.buffer or "")[:end].rstrip())  # it takes the line breaks behind it in
    return end


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _plain(value: Any) -> Any:
    """A tree in which an empty section is no section."""
    if not isinstance(value, dict):
        return value
    kept = {key: _plain(inner) for key, inner in value.items()}
    return {key: inner for key, inner in kept.items() if inner not in (None, {})} or None
