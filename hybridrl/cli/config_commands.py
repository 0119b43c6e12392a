"""`hybridrl config`: show, explain, check and migrate configs without running anything."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from hybridrl.cli import complete
from hybridrl.cli.console import ConfigPath, ForCommand, Overrides, out, say, tell, width
from hybridrl.cli.help import add, group
from hybridrl.config.kind_names import KindOfConfig


def show(config: ConfigPath, overrides: Overrides = None, command: ForCommand = None) -> None:
    """Print every value of a config and where it comes from."""
    from hybridrl.config.kinds import load_any
    from hybridrl.config.run_folder import as_yaml

    _, loaded = load_any(command, config, overrides or [])
    out.print(escape(as_yaml(loaded, width())), end="")


def explain(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY",
            help="As in actor.microbatch_tokens, or a section; without it, all sections.",
            autocompletion=complete.section_keys,
            show_default=False,
        ),
    ] = None,
    command: Annotated[
        KindOfConfig | None,
        typer.Option(
            "--for", help="Of a config for this command; default: any that has the key.", show_default=False
        ),
    ] = None,
) -> None:
    """Tell what a key means, what it takes, its default, and who reads it; or what a section is for."""
    from hybridrl.config import explain as explaining
    from hybridrl.config.kinds import KINDS

    root = KINDS[command] if command else None
    found = explaining.explain(key, root) if key else explaining.sections(root)
    for heading, text in found:
        tell(heading, text)


def check(config: ConfigPath, overrides: Overrides = None, command: ForCommand = None) -> None:
    """Check a config against this machine without starting anything."""
    from hybridrl.config.kinds import command_of

    wanted = command or command_of(config, overrides or [])
    if wanted == "launch":
        _check_run(config, overrides or [])
    else:
        from hybridrl.launch import supervised_run

        kind = supervised_run.SFT if wanted == "sft" else supervised_run.RM
        supervised_run.check(kind, config, overrides or [], say)
    say("ok", f"hybridrl {wanted} {config} would start")


def _check_run(config: Path, overrides: Sequence[str]) -> None:
    from hybridrl.config.load import load
    from hybridrl.hosts.machine import Machine
    from hybridrl.launch.preflight import preflight
    from hybridrl.launch.prepare import try_data
    from hybridrl.launch.verdict import SCOPES

    loaded = load(config, overrides)
    preflight(loaded, SCOPES["launch"], Machine.here(), say, resume="never")
    try_data(loaded, say)


def schema(
    kind: Annotated[
        Literal["rl", "sft", "rm"], typer.Option(help="What the config is for; rl: hybridrl launch.")
    ] = "rl",
) -> None:
    """Print the JSON schema of a config, with which an editor completes and checks keys.

    For the YAML language server (VS Code, Neovim, Emacs), write it to a file and make the first line of
    a config:  [bold]# yaml-language-server: $schema=hybridrl.schema.json[/]
    """
    import json

    from hybridrl.config.json_schema import json_schema
    from hybridrl.config.kinds import KINDS

    found = json_schema(KINDS["launch" if kind == "rl" else kind])
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False))


def migrate(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="Configs, also the resolved.yaml of a run.", autocompletion=complete.configs
        ),
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Only say what would change; exit code 1 if anything would.")
    ] = False,
) -> None:
    """Write renamed keys of a config in their new spelling; comments and layout stay as they are."""
    from hybridrl.config.migrate import migrated, replace_file

    due = False
    for file in files:
        found = migrated(file)
        due = due or bool(found.changes)
        for change in found.changes:
            say("would" if check else "changed", f"{file}: {change}")
        if not found.changes:
            say("ok", f"{file} has no old spellings")
        elif not check:
            replace_file(file, found.text)
    raise typer.Exit(1 if check and due else 0)


config_app = group(
    "Show, explain, check and migrate configs, without running anything.",
    "hybridrl config explain actor",
    "hybridrl config check configs/quickstart.yaml",
)
add(
    config_app,
    show,
    "hybridrl config show configs/quickstart.yaml",
    "hybridrl config show configs/sft_arithmetic.yaml run.steps=20",
)
add(
    config_app,
    explain,
    "hybridrl config explain",
    "hybridrl config explain actor.microbatch_tokens",
    "hybridrl config explain data --for rm",
)
add(
    config_app,
    check,
    "hybridrl config check configs/quickstart.yaml",
    "hybridrl config check configs/rm_arithmetic.yaml --for rm",
)
add(
    config_app,
    schema,
    "hybridrl config schema > hybridrl.schema.json",
    "hybridrl config schema --kind sft > sft.schema.json",
)
add(
    config_app,
    migrate,
    "hybridrl config migrate configs/quickstart.yaml",
    "hybridrl config migrate --check configs/quickstart.yaml configs/sft_arithmetic.yaml",
)
