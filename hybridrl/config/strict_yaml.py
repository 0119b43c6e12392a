"""YAML without surprises: the line of every key, no duplicate keys, and only the scalars that a person means.

PyYAML follows YAML 1.1, where `1e-6` is a string, `on` and `no` are booleans and `1:30` is ninety. Here
numbers are what Python calls numbers, booleans are true and false, and dates are strings.
"""

import re
from dataclasses import dataclass
from typing import Any

import yaml

from hybridrl.errors import ConfigError
from hybridrl.wording import counted

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
MAX_REPEATED = 100_000
"""Values, and characters of scalars, that aliases may add to a text: ten nested ones can ask for billions."""

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
        ConfigError: not YAML, not a mapping, with a key that is duplicate, not a string or dotted, or with
            aliases that write out to more than MAX_REPEATED.
    """
    reader = _Reader(file)
    try:
        tree = reader.read(text, {})
    except yaml.YAMLError as error:
        raise _syntax_error(error, file) from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{file} holds {kind_of(tree)}, not a mapping of keys",
            where=f"{file}:1",
            fix="write key: value lines",
        )
    return Document(tree, reader.line)


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
    try:
        return _Reader(place, one_line=True).read(text, None)
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
            f"{file} is not text: it has U+{error.character:04X} at character {error.position + 1}",
            where=file,
        ) from error


def _syntax_error(error: yaml.YAMLError, file: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    where = f"{file}:{mark.line + 1}, column {mark.column + 1}" if mark else file
    problem = getattr(error, "problem", None) or str(error)
    if problem.startswith("but "):  # the second half of a sentence
        problem = f"{getattr(error, 'context', '')}, {problem}"
    return ConfigError(f"not YAML: {problem}", where=where, fix=_syntax_fix(problem, mark))


def _syntax_fix(problem: str, mark: Any) -> str:
    if "\\t" in problem:
        return "indent with spaces"
    if mark is not None and "${" in str(mark.buffer).split("\n")[mark.line]:
        return "a config fills in no variables: write the value out, or set the key on the command line"
    return ""


class _Reader:
    """Values out of the nodes of one text, each checked where it stands."""

    def __init__(self, file: str, *, one_line: bool = False) -> None:
        self.line: dict[tuple[str, ...], int] = {}
        self._file, self._one_line, self._seen, self._repeated = file, one_line, set[int](), 0

    def read(self, text: str, empty: Any) -> Any:
        """The value of a text; `empty` if it holds none.

        Raises:
            yaml.YAMLError: the text is not YAML.
            ConfigError: its value is refused.
        """
        loader = _loader(text, self._file)
        try:
            node = loader.get_single_node()
            return empty if node is None else self._value(loader, node, (), self.line, ())
        except RecursionError:
            what = "values inside values, deeper than can be read"
            raise ConfigError(what, where=self._file, fix="close the brackets") from None

    def _value(
        self, loader: _Loader, node: yaml.Node, path: tuple[str, ...], line: dict, inside: tuple[int, ...]
    ) -> Any:
        here = self._place(node)
        if id(node) in inside:
            raise ConfigError("an alias that contains itself", where=here, fix="write the value out")
        self._count(node)
        inside = (*inside, id(node))
        if node.tag not in _TAGS:
            raise ConfigError(f"a value with the tag {node.tag}", where=here, fix="plain values only")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(loader, node, path, line, inside)
        if isinstance(node, yaml.SequenceNode):
            return [
                self._value(loader, item, (*path, str(i)), {}, inside) for i, item in enumerate(node.value)
            ]
        try:
            return loader.construct_object(node)
        except ValueError as error:
            what = f"{node.value[:40]!r} is no number"
            raise ConfigError(what, where=here, fix="quote it if it is a text") from error

    def _mapping(
        self,
        loader: _Loader,
        node: yaml.MappingNode,
        path: tuple[str, ...],
        line: dict,
        inside: tuple[int, ...],
    ) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            at = key_node.start_mark.line + 1
            key = self._value(loader, key_node, path, {}, inside)
            dotted, here = ".".join((*path, str(key))), self._place(key_node)
            if not isinstance(key, str):
                raise ConfigError(f"the key {dotted} is {kind_of(key)}", where=here, fix="keys are names")
            if key in tree:
                where = f"{here}, first on line {first[key]}"
                raise ConfigError(f"duplicate key {dotted}", where=where, fix="keep one of them")
            first[key] = line[*path, key] = at
            tree[key] = self._value(loader, value_node, (*path, key), line, inside)
        return tree

    def _count(self, node: yaml.Node) -> None:
        """An alias shares its anchor's node: what is read again was written once."""
        if id(node) in self._seen:
            self._repeated += 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        self._seen.add(id(node))
        if self._repeated > MAX_REPEATED:
            limit = counted(MAX_REPEATED, "value", form=",")
            what = f"aliases that write out to more than {limit} and characters"
            raise ConfigError(what, where=self._place(node), fix="write out what is needed of them")

    def _place(self, node: yaml.Node) -> str:
        return self._file if self._one_line else f"{self._file}:{node.start_mark.line + 1}"
