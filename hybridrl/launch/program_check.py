"""Refuses a program that could not be started, or an endpoint without its certificate."""

import asyncio
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

from hybridrl.config.program import ProgramConfig
from hybridrl.errors import ConfigError, HybridRLError, ResourceError
from hybridrl.hosts.variables import child_environment
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.local import LocalSandbox
from hybridrl.sandbox.start import Shared, is_privileged

_SCRIPTS = (".py", ".sh", ".js")


def unsafe_endpoint(program: ProgramConfig) -> Iterator[ConfigError]:
    """Refuses plain HTTP for programs on other hosts."""
    if not (program.is_loopback or program.tls or program.trusted_network):
        yield ConfigError(
            f"program.host = {program.host} is not loopback, and who reaches it could read keys and answers",
            where="program.host",
            fix="program.tls: {certificate: ..., key: ...}; or program.trusted_network: true",
        )


def unfit_box(program: ProgramConfig) -> Iterator[ConfigError]:
    """Refuses a box without its folder, and one that would hold several episodes."""
    if program.box is None:
        return
    if program.episodes_per_process > 1:
        yield ConfigError(
            f"program.box holds one episode, and program.episodes_per_process = "
            f"{program.episodes_per_process}: the episodes of one process could read each other",
            where="program.episodes_per_process",
            fix="program.episodes_per_process: 1; or leave program.box out",
        )
    if program.folder is None:
        yield ConfigError(
            "program.box shows the program one folder of this machine, and program.folder names none",
            where="program.box",
            fix="program.folder: FOLDER, with the program's files and nothing secret",
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
    if program.box is not None:
        yield from _unfit_box_here(folder)
    yield from _missing_files(program, folder, variables.get("PATH", ""))
    yield from _unfit_certificate(program)


def _unfit_box_here(folder: Path) -> Iterator[HybridRLError]:
    """Errors about boxes of programs on this machine."""
    if is_privileged() and folder.stat().st_mode & 0o005 != 0o005:
        yield ConfigError(
            f"program.folder = {folder} has mode {folder.stat().st_mode & 0o777:o}: a box of root runs under "
            "a user id of its own, which could not read it",
            where="program.folder",
            fix=f"chmod o+rx {folder}",
        )
    try:
        asyncio.run(_try_box())
    except ResourceError as error:
        yield ResourceError(
            f"program.box asks for a box of each episode: {error.what}",
            where="program.box",
            fix=f"{error.fix}, or leave program.box out",
        )


async def _try_box() -> None:
    """
    Raises:
        ResourceError: no box with a port can be made here.
    """
    sandbox = LocalSandbox(Limits(), ahead=1, shared=Shared(port=1))
    await sandbox.start()
    await sandbox.close()


def _unfit_certificate(program: ProgramConfig) -> Iterator[ConfigError]:
    """Errors about the files of the endpoint's certificate: missing ones, and those that do not fit."""
    tls = program.tls
    missing = [(key, file) for key, file in tls or () if not Path(file).is_file()]
    for key, file in missing:
        yield ConfigError(
            f"program.tls.{key} = {file} is no file", where="program.tls", fix="give a file in PEM"
        )
    if tls is None or missing:
        return
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls.certificate, tls.key, password="")  # else a terminal is asked for one
    except OSError as error:  # SSLError is one
        yield ConfigError(
            f"program.tls.certificate = {tls.certificate} and program.tls.key = {tls.key} cannot be used: "
            f"{error}",
            where="program.tls",
            fix="give a certificate and its key, both in PEM, the key without a password",
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
