"""Commands that run, plan, verify and export, and the one that inspects the machine.

What is slow to import is imported where it is used, so that --help answers at once.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from hybridrl.cli.console import AsJson, ConfigPath, ForCommand, Overrides, out, say, show, width
from hybridrl.errors import ConfigError
from hybridrl.wording import counted

Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and start nothing.")]


class Interrupted(Exception):
    """Ctrl-C while a run was going on; the message says what becomes of it."""


def launch(
    config: ConfigPath,
    overrides: Overrides = None,
    on: Annotated[
        Literal["local", "ray", "slurm"],
        typer.Option(help="Where: this machine, a Ray that runs already, a Slurm cluster."),
    ] = "local",
    resume: Resume = False,
    go_on: Annotated[
        bool,
        typer.Option("--continue", help="Go on if something was saved, else begin; as a requeued job."),
    ] = False,
    dry_run: DryRun = False,
    submit: Annotated[bool, typer.Option("--submit", help="With --on ray: hand it to Ray's jobs.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="With --on slurm: until the job is over.")] = False,
    inject: Annotated[
        list[str] | None,
        typer.Option(metavar="FAULT", help="Let a fault happen, as kill:engine:0@step=7,phase=generate."),
    ] = None,
) -> None:
    """Train: check the config, start the workers, run to the end."""
    from hybridrl.config.kinds import load_for
    from hybridrl.config.run_folder import path_of
    from hybridrl.launch import start

    loaded = load_for("launch", config, overrides or [])
    mode = "required" if resume else "if_possible" if go_on else "never"
    request = start.Request(
        on=on, resume=mode, dry_run=dry_run, submit=submit, wait=wait, inject=inject or ()
    )
    try:
        raise typer.Exit(start.launch(loaded, overrides or [], request, say))
    except KeyboardInterrupt:
        kept = f"{path_of(loaded.config)} keeps what was saved, --resume continues it"
        kept = "nothing was started" if dry_run else "the job goes on" if on == "slurm" else kept
        raise Interrupted(kept) from None


def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    search: Annotated[
        bool, typer.Option("--search", help="Propose faster parallel layouts and sizes.")
    ] = False,
    gpus: Annotated[int | None, typer.Option(min=1, help="Search for this number of GPUs.")] = None,
    mean_response: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer on average.")] = None,
    command: ForCommand = None,
) -> None:
    """Show what a config needs before it runs: batch, memory, weight swap, time; refuse what cannot fit."""
    from hybridrl.config.kinds import load_any
    from hybridrl.hosts.machine import Machine
    from hybridrl.plan import command as planning
    from hybridrl.plan import plan_report

    request = planning.Request(search=search, gpus=gpus, mean_response=mean_response)
    wanted, loaded = load_any(command, config, overrides or [])
    make = planning.plan if wanted == "launch" else planning.plan_examples
    found = make(loaded, Machine.here(), request)
    if as_json:
        return out.print_json(data=plan_report.as_dict(found))
    for heading, text in plan_report.lines(found, width()):
        say(heading, text)


def verify(
    config: ConfigPath,
    overrides: Overrides = None,
    layouts: Annotated[str, typer.Option(help="As in tp2,pp2vpp2; default: all that the model has.")] = "",
    tolerance: Annotated[
        float | None, typer.Option(min=0.0, help="What counts as equal; default 2e-6, Gemma 1e-5.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="The real model, not a small one of its kind.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show that loss and gradients are the same on every parallel layout; exit code 1 if not."""
    from hybridrl.config.kinds import load_for
    from hybridrl.verify import report
    from hybridrl.verify.certificate import Request, certify

    request = Request([name for name in layouts.split(",") if name], tolerance, full)
    row = (lambda _: None) if as_json else lambda text: show(text, indent=4)
    found = certify(load_for("launch", config, overrides or []), request, row)
    out.print_json(data=report.as_dict(found)) if as_json else show(report.conclusion(found), 14)
    raise typer.Exit(0 if found.holds else 1)


def sft(
    config: ConfigPath, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False
) -> None:
    """Supervised fine-tuning on the answers of examples, before reinforcement learning or instead."""
    from hybridrl.launch import supervised_run

    code = supervised_run.launch(
        supervised_run.SFT, config, overrides or [], say, resume=resume, dry_run=dry_run
    )
    raise typer.Exit(code)


def rm(
    config: ConfigPath, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False
) -> None:
    """Train a reward model: learn from pairs of answers which of the two is better."""
    from hybridrl.launch import supervised_run

    code = supervised_run.launch(
        supervised_run.RM, config, overrides or [], say, resume=resume, dry_run=dry_run
    )
    raise typer.Exit(code)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, as runs/NAME.")],
    step: Annotated[int | None, typer.Option(min=0, help="Of the checkpoint; default: the newest.")] = None,
    to: Annotated[Path | None, typer.Option(help="New folder; default: RUN/exports/step_...")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare its log-probabilities with the trainer's.")
    ] = False,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="Those of actor.lora alone, in the format of PEFT.")
    ] = False,
) -> None:
    """Make the Hugging Face model of a checkpoint; with --verify exit code 1 if it is not the trainer's."""
    from hybridrl.export import command as exporting

    if adapters and verify:
        raise ConfigError("--verify compares a whole model", fix="leave out --adapters, or --verify")
    write, what = exporting.export_run, "the policy"
    if adapters:
        write, what = exporting.export_adapters, "the adapters"
    exported = write(run, step=step, to=to)
    for text in exported.passed_over:
        say("warning", text)
    say("wrote", f"{exported.folder}, {what} of step {exported.step}")
    if verify:
        proof = exporting.prove(exported)
        what = (
            f"{proof.max_abs_diff:.1e} nats over {counted(proof.num_tokens, 'token')}, "
            f"{exporting.TOLERANCE:g} allowed"
        )
        say("verified" if proof.holds else "differs", f"largest difference of a log-probability {what}")
        raise typer.Exit(0 if proof.holds else 1)


def why(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, as runs/NAME.")],
    mismatch: Annotated[
        bool, typer.Option("--mismatch", help="Say why trainer and engine differ, from a step bundle.")
    ] = False,
) -> None:
    """Show how a run ended: its error and what every process was doing; or what it did when it was killed."""
    if mismatch:
        from hybridrl.replay.explain import explained

        for line in explained(run):
            show(line, indent=2)
        return
    from hybridrl.launch.why import why as lines_of

    for line in lines_of(run):
        show(line, indent=2)


def replay(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="As runs/NAME/bundles/step_000012.")],
    against: Annotated[
        Path | None, typer.Option(help="Compare with another bundle, compute nothing.")
    ] = None,
    layout: Annotated[str, typer.Option(help="Another parallel layout, as in tp2 or pp2vpp2.")] = "",
    tolerance: Annotated[
        float | None, typer.Option(min=0.0, help="What counts as equal; default 0, with --layout 2e-6.")
    ] = None,
) -> None:
    """Take the policy update of a step bundle again; exit code 1, and the first row, if something differs."""
    from hybridrl.replay import command as replaying

    if against and layout:
        raise ConfigError("--against computes nothing", fix="leave out --layout, or --against")
    if against:
        found = replaying.against(bundle, against, tolerance=tolerance)
    else:
        found = replaying.replay(bundle, layout=layout, tolerance=tolerance)
    first, *rest = replaying.lines(found)
    say("differs" if found.compared.different else "same", first)
    for line in rest:
        show(line, indent=4)
    raise typer.Exit(1 if found.compared.different else 0)


def doctor(
    as_json: AsJson = False,
) -> None:
    """Show what this machine has, what is missing, and the command that gets it."""
    from hybridrl.doctor.findings import examine

    report = examine()
    out.print_json(data=report.as_dict()) if as_json else out.print(report.as_table(), width=width())
    raise typer.Exit(0 if report.can_run else 2)
