"""The command line as a tree: its commands, and what a line of it means without being run."""

from collections.abc import Iterator
from typing import Any

import typer

from hybridrl import cli


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group with the names that lead to it; () is `hybridrl` itself."""
    return _below((), typer.main.get_command(cli.app))


def parsed(words: list[str]) -> tuple[list[str], dict[str, object]]:
    """The path of a command in the command line, and its parameters.

    Raises:
        TyperException: there is no such command or option.
    """
    command: Any = typer.main.get_command(cli.app)
    context, path = None, []
    while True:
        context = command.make_context(command.name, list(words), parent=context)
        if not hasattr(command, "commands") or not (rest := [*context._protected_args, *context.args]):
            return path, context.params
        name, command, words = command.resolve_command(context, rest)
        path.append(name)


def _below(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _below((*path, name), inner)
