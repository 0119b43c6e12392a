"""How commands are added to the command line: each with examples in its help, and flags without a type."""

from collections.abc import Callable, Sequence
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

HELP_NAMES = {"help_option_names": ["-h", "--help"]}


class Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return without_flag_types(super().get_params(ctx))


class Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return without_flag_types(super().get_params(ctx))


def without_flag_types(params: list[Any]) -> list[Any]:
    """The parameters; a flag takes no value, and its help says so by showing no type."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


def group(about: str, *examples: str, completion: bool = False) -> typer.Typer:
    """A command with sub-commands."""
    return typer.Typer(
        cls=Group,
        help=about,
        rich_markup_mode="rich",
        add_completion=completion,
        pretty_exceptions_enable=False,
        context_settings=HELP_NAMES,
        epilog=epilog(examples),
    )


def add(app: typer.Typer, function: Callable[..., Any], *examples: str, name: str | None = None) -> None:
    """Make a function a command.

    Args:
        examples: one to three whole command lines.
    """
    app.command(name, cls=Command, epilog=epilog(examples))(function)


def epilog(examples: Sequence[str]) -> str:
    """What stands below a help."""
    title = "Example" if len(examples) == 1 else "Examples"
    return "\n".join([f"[bold]{title}[/]", *(f"$ {escape(line)}" for line in examples)])
