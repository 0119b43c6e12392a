"""The three kinds of config, by the command that takes each, and which of them a file is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hybridrl.config import keys, strict_yaml
from hybridrl.config.kind_names import KindOfConfig
from hybridrl.config.load import LoadedConfig, of_document, read
from hybridrl.config.schema import Config
from hybridrl.config.sft_rm import RMConfig, SFTConfig
from hybridrl.errors import ConfigError

KINDS: Mapping[KindOfConfig, type[BaseModel]] = {"launch": Config, "sft": SFTConfig, "rm": RMConfig}


def command_of(path: Path, overrides: Sequence[str] = ()) -> KindOfConfig:
    """The command that a config is for, told by the keys that it has: the one whose schema lacks the fewest.

    Raises:
        ConfigError: the file is missing or not YAML, or its keys are those of `sft` and of `rm` alike.
    """
    return _command_of(strict_yaml.parse(read(path), str(path)), str(path), overrides)


def load_any(
    command: KindOfConfig | None, path: Path, overrides: Sequence[str] = ()
) -> tuple[KindOfConfig, LoadedConfig[Any]]:
    """The command that a config is for, and the config; the file is read once.

    Args:
        command: of KINDS; None: told by the keys.

    Raises:
        As load_as().
    """
    document = strict_yaml.parse(read(path), str(path))
    command = command or _command_of(document, str(path), overrides)
    return command, of_document(KINDS[command], document, str(path), overrides)


def load_for(command: KindOfConfig, path: Path, overrides: Sequence[str] = ()) -> LoadedConfig[Any]:
    """The config that a command was given.

    Raises:
        ConfigError: its keys are those of another command.
        As load_as().
    """
    document = strict_yaml.parse(read(path), str(path))
    _refuse_other_kind(command, document, str(path), overrides)
    return of_document(KINDS[command], document, str(path), overrides)


def _refuse_other_kind(
    command: KindOfConfig, document: strict_yaml.Document, file: str, overrides: Sequence[str]
) -> None:
    meant = _meant(document, overrides)
    if command not in meant:
        names = " or ".join(f"hybridrl {kind}" for kind in meant)
        raise ConfigError(
            f"{file} has the keys of a config of {names}, not of hybridrl {command}",
            where=file,
            fix=f"hybridrl {meant[0]} {file}",
        )


def _command_of(document: strict_yaml.Document, file: str, overrides: Sequence[str]) -> KindOfConfig:
    found = _meant(document, overrides)
    if found == ["sft", "rm"]:
        raise ConfigError(
            f"{file} has the keys of both hybridrl sft and hybridrl rm", fix="add --for sft, or --for rm"
        )
    return found[0]


def _meant(document: strict_yaml.Document, overrides: Sequence[str]) -> list[KindOfConfig]:
    """The commands whose schema lacks the fewest of the keys."""
    written = [".".join(place) for place in document.line]
    written += [override.partition("=")[0].strip() for override in overrides]
    unknown: dict[KindOfConfig, int] = {kind: _unknown(written, root) for kind, root in KINDS.items()}
    return [command for command, count in unknown.items() if count == min(unknown.values())]


def _unknown(written: Sequence[str], root: type[BaseModel]) -> int:
    """How many of the keys, counted down to the second level, are not in the schema."""
    known = {key.name for key in keys.all_keys(root)}
    return len({top for name in written if (top := ".".join(name.split(".")[:2])) not in known})
