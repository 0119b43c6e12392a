"""Commands that look at runs: report and compare.

What is slow to import is imported where it is used, so that --help answers at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybridrl.cli.console import AsJson, out, say
from hybridrl.errors import ConfigError
from hybridrl.wording import counted

if TYPE_CHECKING:
    from hybridrl.report.run_data import RunData

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, as runs/NAME.")]


def report(
    run: RunPath,
    to: Annotated[
        Path | None,
        typer.Option("--to", "-o", help="The file; default: RUN/report.html.", show_default=False),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Only print the advice, and write no page.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare with the expected curve; exit code 1 if outside.")
    ] = False,
    band: Annotated[
        Path | None, typer.Option("--band", help="Expected curves of your own, for --check.")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Serve the page on this machine, renewed while the run goes on.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="For --live; default: any free one.", show_default=False)
    ] = 0,
) -> None:
    """Write one HTML page about a run: advice, curves, phases, rollouts, config. It needs no network."""
    from hybridrl.report import advice, page
    from hybridrl.report.run_data import read_run

    _refuse_together({"--text": text, "--check": check, "--live": live, "--to": to is not None})
    if band is not None and not check:
        raise ConfigError("--band is what --check compares with", fix="--check")
    if live:
        from hybridrl.report.live import serve

        return serve(run, port, lambda address: say("live", f"{address}  (Ctrl-C ends it)"))
    found = read_run(run)
    if check:
        raise typer.Exit(_check(found, band))
    if not text:
        say("report", str(page.write(found, to)))
    for heading, line in advice.lines(advice.advise(found)):
        say(heading, line)


def _check(run: "RunData", file: Path | None) -> int:
    """Print how a run lies to the expected curves; returns the exit code."""
    from hybridrl.report import band as bands

    expected = bands.band_of(run, file)
    verdict, *others = bands.check(run, expected)
    say("expected", f"by {expected.recipe} with {counted(len(expected.seeds), 'seed')}")
    say(verdict.side, bands.describe(verdict))
    for one in others:
        say("", f"{one.side}: {bands.describe(one)}")
    return 0 if verdict.side == "within" else 1


def _refuse_together(options: Mapping[str, bool]) -> None:
    given = [name for name, is_given in options.items() if is_given]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} do not go together", fix="give one of them")


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of two runs or more.")],
    as_json: AsJson = False,
) -> None:
    """Show in what runs differ, and whether the results differ by more than seeds do."""
    from hybridrl.report import compare as comparing

    found = comparing.compare(runs)
    if as_json:
        return out.print_json(data=comparing.as_dict(found))
    for heading, text in comparing.lines(found):
        say(heading, text)
