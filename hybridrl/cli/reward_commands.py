"""`hybridrl reward`: list the rewards of the project, and try the one of a config."""

from typing import Annotated

import typer
from rich.markup import escape

from hybridrl.cli.console import AsJson, ConfigPath, Overrides, out, show, tell
from hybridrl.cli.help import add, group

MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "no": ("no", "red")}


def list_all(as_json: AsJson = False) -> None:
    """Every built-in reward with its options; one of your own is module:name or file.py:name."""
    show_plugins("hybridrl.rewards.rules", as_json=as_json)


def check(
    config: ConfigPath,
    overrides: Overrides = None,
    rows: Annotated[
        int, typer.Option(min=1, help="Rows of the training data whose right answers are tried.")
    ] = 200,
    as_json: AsJson = False,
) -> None:
    """Try the reward of a config on right, wrong, empty, cut, very long and hostile answers, many at once.

    Exit code 2 if a run would end, or learn from wrong rewards; warnings are for you to judge.
    """
    from hybridrl.config.kinds import load_for
    from hybridrl.launch.reward_trial import trial

    found = []
    for finding in trial(load_for("launch", config, overrides or []), sample=rows):
        found.append(finding)
        mark, style = MARKS[finding.verdict]
        if not as_json:
            tell(f"{mark:<8}", f"{finding.kind:<10} {finding.text}", style=style, indent=21)
    if as_json:
        out.print_json(data=[{"verdict": f.verdict, "kind": f.kind, "text": f.text} for f in found])
    raise typer.Exit(2 if any(finding.verdict == "no" for finding in found) else 0)


def show_plugins(package: str, *, as_json: bool) -> None:
    """Print the plug-ins of a package, each with its options below it."""
    from dataclasses import asdict

    from hybridrl.config.plugin_options import described

    plugins = described(package)
    if as_json:
        return out.print_json(data=[asdict(plugin) for plugin in plugins])
    for plugin in plugins:
        out.print(f"[bold]{escape(plugin.name)}[/]")
        show(f"    {plugin.about}", indent=4)
        for option in plugin.options:
            default = "has to be given" if option.default is None else f"default {option.default}"
            show(f"    {option.name:<18} {option.meaning or '-'}  ({default})", indent=23)


reward_app = group(
    "List the rewards, and try the one of a config.",
    "hybridrl reward list",
    "hybridrl reward check configs/quickstart.yaml",
)
add(reward_app, list_all, "hybridrl reward list", "hybridrl reward list --json", name="list")
add(
    reward_app,
    check,
    "hybridrl reward check configs/quickstart.yaml",
    "hybridrl reward check configs/quickstart.yaml reward=math_verify --rows 50",
)
