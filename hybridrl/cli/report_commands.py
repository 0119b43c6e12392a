"""Commands that look at runs: report and compare.

What is slow to import is imported where it is used, so that --help answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from hybridrl.cli.console import AsJson, out, say

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, as runs/NAME.")]


def report(
    run: RunPath,
    to: Annotated[
        Path | None,
        typer.Option("--to", "-o", help="The file; default: RUN/report.html.", show_default=False),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Only print the advice, and write no page.")] = False,
) -> None:
    """Write one HTML page about a run: advice, curves, phases, rollouts, config. It needs no network."""
    from hybridrl.report import advice, page
    from hybridrl.report.run_data import read_run

    found = read_run(run)
    if not text:
        say("report", str(page.write(found, to)))
    for heading, line in advice.lines(advice.advise(found)):
        say(heading, line)


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
