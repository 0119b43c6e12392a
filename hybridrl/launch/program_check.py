"""Refuses a program that could not be started, or an endpoint without its certificate."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from hybridrl.config.program import ProgramConfig
from hybridrl.errors import ConfigError, HybridRLError
from hybridrl.hosts.variables import child_environment

_SCRIPTS = (".py", ".sh", ".js")


def unsafe_endpoint(program: ProgramConfig) -> Iterator[ConfigError]:
    """Refuses plain HTTP for programs on other hosts."""
    if not (program.is_loopback or program.tls or program.trusted_network):
        yield ConfigError(
            f"program.host = {program.host} is not loopback, and who reaches it could read keys and answers",
            where="program.host",
            fix="program.tls: {certificate: ..., key: ...}; or program.trusted_network: true",
        )


def unfit_program(program: ProgramConfig) -> Iterator[HybridRLError]:
    """Errors about a program on the machine that plays its episodes; their `where` is a config key."""
    try:
        variables = child_environment(program.variables, key="program.variables", where="program.variables")
    except ConfigError as error:
        yield error
        return
    folder = Path(program.folder or ".")
    if not folder.is_dir():
        yield ConfigError(
            f"program.folder = {folder} is no folder", where="program.folder", fix="give one, or leave it out"
        )
        return
    yield from _missing_files(program, folder, variables.get("PATH", ""))
    for key, file in program.tls or ():
        if not Path(file).is_file():
            yield ConfigError(
                f"program.tls.{key} = {file} is no file", where="program.tls", fix="give a file in PEM"
            )


def _missing_files(program: ProgramConfig, folder: Path, path: str) -> Iterator[ConfigError]:
    first, *others = program.command
    here = (folder / first).is_file() if "/" in first else shutil.which(first, path=path) is not None
    if not here:
        yield ConfigError(
            f"program.command = {' '.join(program.command)}: there is no {first}",
            where="program.command",
            fix="give a program of PATH, or a path from program.folder",
        )
    for word in others:
        if word.endswith(_SCRIPTS) and not (folder / word).is_file():
            yield ConfigError(
                f"program.command names {word}, which is not in {folder.resolve()}",
                where="program.command",
                fix="start the run where it is, or set program.folder",
            )
