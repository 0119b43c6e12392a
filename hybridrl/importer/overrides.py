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
from hybridrl.importer.shell import Command, Word, commands
from hybridrl.importer.translation import Remark

_SETTING = re.compile(r"\+{0,2}([A-Za-z_][\w@./-]*)=(.*)", re.DOTALL)
_DOTTED = re.compile(r"\+{0,2}([A-Za-z_][\w@-]*(?:\.[\w@-]+)+|model_engine)=(.*)", re.DOTALL)
_MODULE = re.compile(r"(?:[\w/-]+[./])*(?:main_\w+|\w+_main|\w*sft_trainer\w*)(?:\.py)?|verl\.trainer\.main")
_CONFIG_NAME = ("--config-name", "-cn")
_PRINTS = {"echo", "printf", "cat", "grep", "tee", "logger"}
_READS_OTHERS = {"source", ".", "eval"}


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

    remarks: tuple[Remark, ...] = ()
    """Words of the call that set no key, and what else of the script is not in the overrides."""

    unread: tuple[str, ...] = ()
    """Words that only a run of the script could tell, whole overrides among them perhaps."""


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
    found = commands(text, variables)
    starts = [at for at, command in enumerate(found) if _is_launch(command.words)]
    if starts:
        return _launch(found, starts)
    settings = tuple(_of_lines(found, text))
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


def _module(words: Sequence[Word]) -> int | None:
    return next((at for at, word in enumerate(words) if _MODULE.fullmatch(word.text)), None)


def _is_launch(words: Sequence[Word]) -> bool:
    at = _module(words)
    if at is None or words[0].text in _PRINTS:
        return False
    return any(word.unknown or _SETTING.fullmatch(word.text) for word in words[at + 1 :])


def _launch(found: Sequence[Command], starts: Sequence[int]) -> Launch:
    """The first launch of a script."""
    command = found[starts[0]]
    words = command.words
    at = _module(words) or 0
    rest = words[at + 1 :]
    name, named = _config_name(rest)
    others = [word for place, word in enumerate(rest) if place not in named and not _sets(word)]
    return Launch(
        words[at].text,
        tuple(_overrides(rest)),
        name,
        (*_about(found, starts), *map(_remark, others)),
        tuple(word.text for word in others if word.unknown),
    )


def _about(found: Sequence[Command], starts: Sequence[int]) -> Iterator[Remark]:
    """What the script does besides its first launch that the overrides do not hold."""
    first = found[starts[0]]
    for command in found[: starts[0]]:
        if command.words[0].text in _READS_OTHERS:
            written = " ".join(word.text for word in command.words)
            yield Remark(f"line {command.words[0].line}: {written}", "it may set variables: it was not read")
    if first.condition:
        why = f"only a run could tell: it hangs on {first.condition}; this one was taken"
        yield Remark(f"the launch of line {first.words[0].line}", why)
    if first.is_open:
        yield Remark("$@", "words with which the script is started are not in the file: add them by hand")
    for at in starts[1:]:
        line = found[at].words[0].line
        yield Remark(f"another launch, line {line}", "the first was taken: import the others one by one")


def _sets(word: Word) -> bool:
    return bool(_SETTING.fullmatch(word.text))


def _remark(word: Word) -> Remark:
    if word.unknown:
        return Remark(word.text, f"only a run of the script could tell {word.unknown}: set it by hand")
    if word.text.startswith("~"):
        return Remark(word.text, "it takes a key of verl's defaults away: leave ours as it is or set it")
    if word.text.startswith("-"):
        return Remark(word.text, "an option of Hydra: it sets no key")
    return Remark(word.text, "not an override that this importer reads")


def _config_name(words: Sequence[Word]) -> tuple[str, set[int]]:
    """The name that --config-name gives, and the places of the words that say it."""
    for at, word in enumerate(words):
        name, equals, value = word.text.partition("=")
        if name in _CONFIG_NAME and not word.unknown:
            following = words[at + 1].text if at + 1 < len(words) else ""
            return (value, {at}) if equals else (following, {at, at + 1})
    return "", set()


def _overrides(words: Sequence[Word], form: re.Pattern[str] = _SETTING) -> Iterator[Override]:
    for word in words:
        if found := form.fullmatch(word.text):
            value = found[2] if word.unknown else _parsed(found[2])
            yield Override(found[1], value, found[2], word.line, word.unknown)


def _of_lines(found: Sequence[Command], text: str) -> Iterator[Override]:
    """The settings of a file without a launch. A key without a dot is a variable where the file uses it."""
    dotted = list(_overrides([word for command in found for word in command.words], _DOTTED))
    if not dotted:
        return
    yield from dotted
    for line, written in enumerate(text.splitlines(), 1):
        one = re.fullmatch(r"\s*([A-Za-z_]\w*)=(\S*)\s*", written)
        if one and not re.search(rf"\$\{{?{one[1]}\b", text) and one[1] != "model_engine":
            yield Override(one[1], _parsed(one[2]), one[2], line)


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
