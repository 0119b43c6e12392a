"""Reads what a file sets in another framework's configuration: dotted keys, their values, the lines.

A launch script, a file of key=value lines and a YAML are read alike.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridrl.config import strict_yaml
from hybridrl.errors import ConfigError
from hybridrl.importer.shell import Word, commands

_SETTING = re.compile(r"\+{0,2}([A-Za-z_][\w@-]*(?:\.[\w@-]+)+|model_engine)=(.*)", re.DOTALL)
_MODULE = re.compile(r"(?:[\w/-]+[./])*main_\w+(?:\.py)?")


@dataclass(frozen=True, slots=True)
class Override:
    key: str
    """The dotted key, without the + of Hydra."""

    value: Any
    written: str
    """The value as the file has it, with variables expanded."""

    line: int
    unknown: str = ""
    """The part of the value that only a run of the script could tell; `value` is then the text of the
    file."""

    @property
    def text(self) -> str:
        return f"{self.key}={self.written}"


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of a trainer."""

    module: str
    """The module that is started, as verl.trainer.main_ppo; empty for a file without a command."""

    overrides: tuple[Override, ...]
    """The overrides in the file's order; a later one wins."""

    config_name: str = ""
    """Value of --config-name."""


def read(path: Path, variables: Mapping[str, str]) -> Launch:
    """The launch that a file describes; the first if there are several.

    Args:
        variables: environment that the script starts with: HOME and the like.

    Raises:
        ConfigError: there is no such file, it is not text, or nothing in it sets a key.
    """
    text = _text(path)
    if path.suffix in {".yaml", ".yml"}:
        return Launch("", tuple(_of_yaml(text, str(path))))
    launches = [found for words in commands(text, variables) if (found := _launch(words))]
    if launches:
        return launches[0]
    settings = tuple(_overrides([word for words in commands(text, variables) for word in words]))
    if not settings:
        raise ConfigError(
            f"{path} starts no trainer: there is no python -m ...main_ppo key=value in it",
            where=str(path),
            fix="give the script with that call, a file of key=value lines, or a YAML",
        )
    return Launch("", settings)


def _text(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"no file at {path}", fix="check the path")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", where=f"byte {error.start}") from error


def _launch(words: Sequence[Word]) -> Launch | None:
    at = next((i for i, word in enumerate(words) if _MODULE.fullmatch(word.text)), None)
    if at is None or not any(_SETTING.fullmatch(word.text) for word in words[at:]):
        return None
    rest = words[at + 1 :]
    return Launch(words[at].text, tuple(_overrides(rest)), _config_name([word.text for word in rest]))


def _config_name(words: Sequence[str]) -> str:
    for option, following in zip(words, [*words[1:], ""]):
        name, equals, value = option.partition("=")
        if name in {"--config-name", "-cn"}:
            return value if equals else following
    return ""


def _overrides(words: Sequence[Word]) -> Iterator[Override]:
    for word in words:
        if found := _SETTING.fullmatch(word.text):
            value = found[2] if word.unknown else _parsed(found[2])
            yield Override(found[1], value, found[2], word.line, word.unknown)


def _parsed(text: str) -> Any:
    """A value as Hydra reads it; if it is not YAML, it is text."""
    try:
        return strict_yaml.parse_value(text, "override")
    except ConfigError:
        return text


def _of_yaml(text: str, file: str) -> Iterator[Override]:
    document = strict_yaml.parse(text, file)
    for path, value in _leaves(document.tree, ()):
        # ${...} copies another key, ??? is a value yet to be set, and the other keys are Hydra's own
        follows = isinstance(value, str) and ("${" in value or value == "???")
        if not follows and path[0] not in {"defaults", "hydra"} and path[-1] != "_target_":
            yield Override(".".join(path), value, strict_yaml.inline(value), document.line[path])


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value
