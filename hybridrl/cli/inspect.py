"""`hybridrl config` and `hybridrl algo`: look at configs and algorithms without running anything."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from hybridrl.cli.console import ConfigPath, ForCommand, Overrides, out, say

config_app = typer.Typer(
    rich_markup_mode="rich", no_args_is_help=True, help="Look at a config before running it."
)
algo_app = typer.Typer(
    rich_markup_mode="rich", no_args_is_help=True, help="Look at the algorithms, and check one of your own."
)


@config_app.command("show")
def config_show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print every value of a config and where it comes from."""
    from hybridrl.config.load import load
    from hybridrl.config.run_folder import as_yaml

    out.print(escape(as_yaml(load(config, overrides or []))), end="")


@config_app.command("explain")
def config_explain(
    key: Annotated[str, typer.Argument(metavar="KEY", help="As in actor.microbatch_tokens, or a section.")],
) -> None:
    """Tell what a key means, what it takes, its default, and who reads it."""
    from hybridrl.config.explain import explain

    for heading, text in explain(key):
        out.print(f"[bold]{escape(heading)}[/]  {escape(text)}")


@config_app.command("check")
def config_check(config: ConfigPath, overrides: Overrides = None, command: ForCommand = "launch") -> None:
    """Check a config against this machine without starting anything."""
    if command == "launch":
        _check_run(config, overrides or [])
    else:
        from hybridrl.launch import supervised_run

        supervised_run.check(
            {"sft": supervised_run.SFT, "rm": supervised_run.RM}[command], config, overrides or [], say
        )
    say("ok", f"hybridrl {command} {config} would start")


def _check_run(config: Path, overrides: Sequence[str]) -> None:
    from hybridrl.config.load import load
    from hybridrl.hosts.machine import Machine
    from hybridrl.launch.preflight import preflight
    from hybridrl.launch.prepare import try_data
    from hybridrl.launch.verdict import SCOPES

    loaded = load(config, overrides)
    preflight(loaded, SCOPES["launch"], Machine.here(), say)
    try_data(loaded, say)


@algo_app.command("list")
def algo_list(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
) -> None:
    """Every estimator, loss, KL form, correction, setting and preset, with its source."""
    from hybridrl.algorithms.catalog import listing

    found = listing()
    if as_json:
        out.print_json(data=found)
        return
    for kind, plugins in found.items():
        out.print(f"\n[bold]{escape(kind)}[/]")
        for plugin in plugins:
            out.print(f"  {plugin['name']:<28} {escape(plugin.get('title') or plugin['about'])}")
            if needs := plugin.get("needs"):
                out.print(f"  {'':<28} [dim]needs {escape(needs)}[/]")


@algo_app.command("explain")
def algo_explain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in grpo, ppo_clip, dapo.")],
) -> None:
    """Formula, source, options and defaults of an algorithm."""
    from hybridrl.algorithms.catalog import explain

    for heading, text in explain(name):
        out.print(f"[bold]{escape(heading)}[/]  {escape(text)}")


@algo_app.command("diff")
def algo_diff(
    algorithm: Annotated[str, typer.Argument(metavar="ALGORITHM", help="As in grpo.")],
    a: Annotated[str, typer.Option("--a", help="A framework, as in verl; or hybridrl.")],
    b: Annotated[str, typer.Option("--b", help="Another one.")],
) -> None:
    """The same algorithm as two frameworks compute it: what differs, why, and by how much on a batch."""
    from hybridrl.algorithms.compare import diff

    for heading, text in diff(algorithm, a, b).lines():
        out.print(f"[bold]{escape(heading)}[/]  {escape(text)}" if heading else escape(text))


@algo_app.command("check")
def algo_check(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="An estimator or policy loss, or module:Name of yours.")
    ],
) -> None:
    """Try an estimator or a policy loss on batches that break wrong ones: order, padding, ranks."""
    from hybridrl.algorithms.check import check_plugin
    from hybridrl.config.section import PluginConfig

    checks = check_plugin(PluginConfig(name=name))
    for check in checks:
        mark = "[green]ok[/]" if check.holds else "[red]no[/]"
        out.print(f"{mark}  {escape(check.name)}: {escape(check.text)}")
    raise typer.Exit(0 if all(check.holds for check in checks) else 2)
