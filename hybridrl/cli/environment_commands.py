"""`hybridrl environment`: list the environments of the project, and try the one of a config."""

from typing import Annotated

import typer

from hybridrl.cli.console import AsJson, ConfigPath, Overrides, out, tell
from hybridrl.cli.help import add, group
from hybridrl.cli.reward_commands import MARKS, show_plugins


def list_all(as_json: AsJson = False) -> None:
    """Every built-in environment with its options; one of your own is module:Name or file.py:Name."""
    show_plugins("hybridrl.environments.kinds", as_json=as_json)


def check(
    config: ConfigPath,
    overrides: Overrides = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each environment.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Play the environment of a config with random, empty, endless and malformed answers, without a model.

    Exit code 2 if an episode hangs, dies or fails; warnings are for you to judge.
    """
    from hybridrl.config.kinds import load_for
    from hybridrl.launch.environment_trial import trial

    found = []
    for name, finding in trial(load_for("launch", config, overrides or []), episodes=episodes):
        found.append((name, finding))
        mark, style = MARKS[finding.verdict]
        if not as_json:
            tell(f"{mark:<8}", f"{name:<10} {finding.kind:<10} {finding.text}", style=style, indent=32)
    if as_json:
        rows = [{"environment": n, "verdict": f.verdict, "kind": f.kind, "text": f.text} for n, f in found]
        out.print_json(data=rows)
    raise typer.Exit(2 if any(finding.verdict == "no" for _, finding in found) else 0)


environment_app = group(
    "List the environments, and try the one of a config.",
    "hybridrl environment list",
    "hybridrl environment check configs/guess.yaml",
)
add(
    environment_app,
    list_all,
    "hybridrl environment list",
    "hybridrl environment list --json",
    name="list",
)
add(
    environment_app,
    check,
    "hybridrl environment check configs/guess.yaml",
    "hybridrl environment check configs/lookup.yaml --episodes 50",
)
