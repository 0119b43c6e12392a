"""What commands share: where and how wide they print, and arguments that many of them take."""

import re
import shutil
import textwrap
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from hybridrl.cli import complete
from hybridrl.config.kind_names import KindOfConfig

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG", help="YAML file of the run.", show_default=False, autocompletion=complete.configs
    ),
]

ForCommand = Annotated[
    KindOfConfig | None,
    typer.Option(
        "--for", help="The command that the config is for; default: told by its keys.", show_default=False
    ),
]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Set keys, as in run.steps=20.",
        show_default=False,
        autocompletion=complete.overrides,
    ),
]

_UNIT = re.compile(r"(?<=\d) (?=(?:ms|s|x|%|[kKMGT]i?B|M|nats|GPUs?|nodes?|ranks?)\b)")

AsJson = Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")]


def width() -> int | None:
    """Columns that lines have to fit: the terminal's, or COLUMNS. None: a program reads them, and a line
    stays one line.
    """
    columns = shutil.get_terminal_size((0, 0)).columns
    return max(40, columns) if columns else None


def fitted(line: str, indent: int) -> list[str]:
    """The line in parts that fit the width, broken between words; all but the first are indented."""
    columns = width()
    if columns is None or len(line) <= columns:
        return [line]
    whole = _UNIT.sub("\u00a0", line)  # 0.41 s stays together
    parts = textwrap.wrap(
        whole,
        columns,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
    return [part.replace("\u00a0", " ") for part in parts] or [line]


def say(heading: str, text: str) -> None:
    """A line of what happens before the live view begins."""
    tell(f"{heading:<9}", text, gap=1, indent=10)


def tell(
    heading: str, text: str, *, gap: int = 2, indent: int = 4, file: Console = out, style: str = "bold"
) -> None:
    """A heading, then its text after `gap` spaces; what does not fit goes on below, indented."""
    for line in text.split("\n"):
        first, *more = fitted(f"{heading}{' ' * gap if heading else ''}{line}", indent)
        file.print(f"[{style}]{escape(first[: len(heading)])}[/]{escape(first[len(heading) :])}")
        for part in more:
            file.print(escape(part))
        heading = ""


def show(text: str, indent: int = 0) -> None:
    """Lines of plain text."""
    for line in text.split("\n"):
        for part in fitted(line, indent):
            out.print(escape(part))
