"""YAML without surprises: the line of every key, no duplicate keys, and only the scalars that a person means.

PyYAML follows YAML 1.1, where `1e-6` is a string, `on` and `no` are booleans and `1:30` is ninety. Here
numbers are what Python calls numbers, booleans are true and false, and dates are strings.
"""

import re
from dataclasses import dataclass
from typing import Any

import yaml

from hybridrl.errors import ConfigError

_FLOAT = (
    r"[-+]?(?:[0-9][0-9_]*)?\.[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*\.(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (_FLOAT, list("-+0123456789.")),
}
_TAGS = {f"tag:yaml.org,2002:{name}" for name in (*_SCALARS, "str", "seq", "map")}


def _resolve_alike(kind: type) -> type:
    """Give a loader or dumper the scalars above: what one writes plain, the other reads as the same type."""
    kind.yaml_implicit_resolvers = {}
    for name, (pattern, first) in _SCALARS.items():
        kind.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"^(?:{pattern})$"), first)
    return kind


@_resolve_alike
class _Loader(yaml.SafeLoader):
    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        digits = node.value.replace("_", "")
        return int(digits, 16) if digits.startswith("0x") else int(digits)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


@_resolve_alike
class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = None if text.isprintable() else '"'  # other styles break lines, or fold what breaks lines
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed mapping and where its keys stand."""

    tree: dict[str, Any]
    line: dict[tuple[str, ...], int]
    """Line, from 1, of each key of the mappings in mappings; keys inside lists are not listed."""


def parse(text: str, file: str) -> Document:
    """The mapping that a YAML text holds.

    Raises:
        ConfigError: not YAML, not a mapping, or with a key that is duplicate, not a string or dotted.
    """
    line: dict[tuple[str, ...], int] = {}
    loader = _loader(text, file)
    try:
        node = loader.get_single_node()
        tree = {} if node is None else _value(loader, node, (), line, file, ())
    except yaml.YAMLError as error:
        raise _syntax_error(error, file) from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{file} holds {kind_of(tree)}, not a mapping of keys",
            where=f"{file}:1",
            fix="write key: value lines",
        )
    return Document(tree, line)


def compose(text: str, file: str) -> yaml.Node | None:
    """The nodes of a YAML text, with the places where they begin and end; None: it is empty.

    Raises:
        ConfigError: not YAML.
    """
    try:
        return _loader(text, file).get_single_node()
    except yaml.YAMLError as error:
        raise _syntax_error(error, file) from error


def parse_value(text: str, place: str) -> Any:
    """A single value, as on a command line.

    Raises:
        ConfigError: the text is not a YAML value.
    """
    loader = _loader(text, place)
    try:
        node = loader.get_single_node()
        return None if node is None else _value(loader, node, (), {}, place, ())
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is not a YAML value", where=place, fix="quote it") from error


def inline(value: Any) -> str:
    """A value as YAML on one line; `parse_value` reads it back as the same value."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=True,
        width=float("inf"),
        allow_unicode=True,
        sort_keys=False,
    )
    return text.removesuffix("...\n").strip()


def folded(line: str, width: int) -> list[str]:
    """A line of the form `key: value` in lines of at most this many characters, where the value has spaces to
    break at; together they are read as the one line is.
    """
    text = line.lstrip()
    indent = " " * (len(line) - len(text))
    tree, lines = parse(text, "").tree, [line]
    for room in range(width - len(indent), 20, -4):  # PyYAML breaks behind the word that goes over
        lines = [indent + part for part in _in_lines(tree, room)]
        if max(map(len, lines)) <= width:
            break
    return lines


def _in_lines(tree: dict[str, Any], width: int) -> list[str]:
    holds = any(isinstance(value, dict | list) for value in tree.values())
    text = yaml.dump(
        tree,
        Dumper=_Dumper,
        default_flow_style=None if holds else False,  # braces inside, none around the key
        width=width,
        allow_unicode=True,
        sort_keys=False,
    )
    return text.splitlines()


def kind_of(value: Any) -> str:
    """What a person calls the type of a parsed value."""
    names = {
        dict: "a mapping",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "an integer",
        float: "a number",
    }
    return "nothing" if value is None else names[type(value)]


def _loader(text: str, file: str) -> _Loader:
    try:
        return _Loader(text)
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            f"{file} is not text: character {error.character!r} at {error.position}", where=file
        ) from error


def _syntax_error(error: yaml.YAMLError, file: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    where = f"{file}:{mark.line + 1}, column {mark.column + 1}" if mark else file
    problem = getattr(error, "problem", None) or str(error)
    tab = "\\t" in problem
    return ConfigError(f"not YAML: {problem}", where=where, fix="indent with spaces" if tab else "")


def _value(
    loader: _Loader, node: yaml.Node, path: tuple[str, ...], line: dict, file: str, inside: tuple[int, ...]
) -> Any:
    here = f"{file}:{node.start_mark.line + 1}"
    if id(node) in inside:
        raise ConfigError("an alias that contains itself", where=here, fix="write the value out")
    inside = (*inside, id(node))
    if node.tag not in _TAGS:
        raise ConfigError(f"a value with the tag {node.tag}", where=here, fix="plain values only")
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, line, file, inside)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*path, str(i)), {}, file, inside) for i, item in enumerate(node.value)]
    return loader.construct_object(node)


def _mapping(
    loader: _Loader,
    node: yaml.MappingNode,
    path: tuple[str, ...],
    line: dict,
    file: str,
    inside: tuple[int, ...],
) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    first: dict[str, int] = {}
    for key_node, value_node in node.value:
        at = key_node.start_mark.line + 1
        key = _value(loader, key_node, path, {}, file, inside)
        dotted = ".".join((*path, str(key)))
        if not isinstance(key, str):
            raise ConfigError(
                f"the key {dotted} is {kind_of(key)}", where=f"{file}:{at}", fix="keys are names"
            )
        if key in tree:
            raise ConfigError(
                f"duplicate key {dotted}",
                where=f"{file}:{at}, first on line {first[key]}",
                fix="keep one of them",
            )
        first[key] = line[*path, key] = at
        tree[key] = _value(loader, value_node, (*path, key), line, file, inside)
    return tree
