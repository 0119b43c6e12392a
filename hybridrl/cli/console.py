"""What commands share: where they print, and arguments that many of them take."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file of the run.", show_default=False)
]
ForCommand = Annotated[
    Literal["launch", "sft", "rm"], typer.Option("--for", help="The command that the config is for.")
]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Set keys: run.steps=20 actor.optimizer.lr=1e-5", show_default=False
    ),
]


def say(heading: str, text: str) -> None:
    """A line of what happens before the live view begins."""
    out.print(f"[bold]{escape(heading):<9}[/] {escape(text)}")
