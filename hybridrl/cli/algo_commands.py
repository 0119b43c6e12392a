"""`hybridrl algo`: list, explain and compare the algorithms, and check an estimator."""

from typing import Annotated

import typer
from rich.markup import escape

from hybridrl.cli.console import AsJson, out, show, tell
from hybridrl.cli.help import add, group


def list_all(as_json: AsJson = False) -> None:
    """Every estimator, loss, KL form, correction, setting and preset, with its source."""
    from hybridrl.algorithms.catalog import listing

    found = listing()
    if as_json:
        out.print_json(data=found)
        return
    for kind, plugins in found.items():
        out.print(f"\n[bold]{escape(kind)}[/]")
        for plugin in plugins:
            show(f"  {plugin['name']:<28} {plugin.get('title') or plugin['about']}", indent=31)
            if needs := plugin.get("needs"):
                show(f"  {'':<28} needs {needs}", indent=31)


def explain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in grpo, ppo_clip, dapo.")],
) -> None:
    """Formula, source, options and defaults of an algorithm."""
    from hybridrl.algorithms import catalog

    for heading, text in catalog.explain(name):
        tell(heading, text)


def diff(
    algorithm: Annotated[str, typer.Argument(metavar="ALGORITHM", help="As in grpo.")],
    a: Annotated[str, typer.Option("--a", help="A framework, as in verl; or hybridrl.")],
    b: Annotated[str, typer.Option("--b", help="Another one.")],
) -> None:
    """The same algorithm as two frameworks compute it: what differs, why, and by how much on a batch."""
    from hybridrl.algorithms import compare

    for heading, text in compare.diff(algorithm, a, b).lines():
        tell(heading, text)


def check(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="An estimator or policy loss, or module:Name of yours.")
    ],
) -> None:
    """Try an estimator or a policy loss on batches that break wrong ones: order, padding, ranks."""
    from hybridrl.algorithms.check import check_plugin
    from hybridrl.config.section import PluginConfig

    checks = check_plugin(PluginConfig(name=name))
    for check in checks:
        mark, style = ("ok", "green") if check.holds else ("no", "red")
        tell(mark, f"{check.name}: {check.text}", style=style)
    raise typer.Exit(0 if all(check.holds for check in checks) else 2)


algo_app = group(
    "List and explain the algorithms, and check one of your own.",
    "hybridrl algo list",
    "hybridrl algo explain grpo",
)
add(algo_app, list_all, "hybridrl algo list", "hybridrl algo list --json", name="list")
add(algo_app, explain, "hybridrl algo explain grpo", "hybridrl algo explain ppo_clip")
add(algo_app, diff, "hybridrl algo diff grpo --a verl --b hybridrl")
add(algo_app, check, "hybridrl algo check grpo", "hybridrl algo check my_module:MyEstimator")
