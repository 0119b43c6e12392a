"""The command line: reads a config, checks it, and hands it to the room that does the work.

The only room that knows everything. What is slow to import is imported where it is used, so that --help
answers at once. Exit codes: 0 done, 1 a failure of ours, 2 a mistake of the user's, 3 a deadline, 75 asked to
stop and saved, 130 interrupted.
"""

import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from typer.exceptions import TyperException

from hybridrl import __version__
from hybridrl.cli.console import ConfigPath, ForCommand, Overrides, err, out, say
from hybridrl.cli.inspect import algo_app, config_app
from hybridrl.errors import ConfigError, HybridRLError, UserError

INTERRUPTED = 130

app = typer.Typer(
    name="hybridrl",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A first run: [bold]hybridrl launch configs/quickstart.yaml[/]",
)
app.add_typer(config_app, name="config")
app.add_typer(algo_app, name="algo")
import_app = typer.Typer(
    rich_markup_mode="rich", no_args_is_help=True, help="Turn another framework's run into a config."
)
app.add_typer(import_app, name="import")


AsJson = Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and start nothing.")]


class Interrupted(Exception):
    """Ctrl-C while a run was going on; the message says what becomes of it."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the process ends with the code returned."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # where a config's module:name is looked for first, as python itself does
    try:
        code = app(arguments, prog_name="hybridrl", standalone_mode=False)
    except (Exception, SystemExit) as error:
        return show_error(error)
    if code == INTERRUPTED:
        err.print("interrupted")
    return code if isinstance(code, int) else 0


def show_error(error: BaseException) -> int:
    """Tell a person what ended a command, one "error:" line for each mistake; returns its exit code."""
    if isinstance(error, Interrupted):
        err.print(f"interrupted: {escape(str(error))}")
        return INTERRUPTED
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
        return 1  # rich's end of a command whose reader left, as `head` does
    if isinstance(error, HybridRLError):
        lines, code = [str(one) for one in getattr(error, "errors", (error,))], error.exit_code
    elif isinstance(error, TyperException):
        lines, code = [f"{error.format_message()}  (see hybridrl --help)"], 2
    else:
        what = "a failure of hybridrl itself"
        if isinstance(error, SystemExit):
            what = f"something ended the command before it was done, by SystemExit: {error}"
        lines, code = [f"{what}; its traceback is in {_keep_traceback(error)}"], 1
    for line in lines:
        err.print(f"[bold red]error:[/] {escape(line)}")
    return code


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Reinforcement learning of language models: [bold]Megatron-core[/] trainers, [bold]SGLang[/] engines
    that share their weights, one [bold]YAML[/] per run. Without GPUs both run on the CPU.
    """
    if version:
        out.print(f"hybridrl {__version__}")
    elif context.invoked_subcommand is None:
        out.print(context.get_help())


@app.command()
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
) -> None:
    """Train: check the config, start the workers, run to the end."""
    from hybridrl.config.load import load
    from hybridrl.config.run_folder import path_of
    from hybridrl.launch import start

    loaded = load(config, overrides or [])
    mode = "required" if resume else "if_possible" if go_on else "never"
    request = start.Request(on=on, resume=mode, dry_run=dry_run, submit=submit, wait=wait)
    try:
        raise typer.Exit(start.launch(loaded, overrides or [], request, say))
    except KeyboardInterrupt:
        kept = f"{path_of(loaded.config)} keeps what was saved, --resume continues it"
        raise Interrupted("the job goes on" if on == "slurm" else kept) from None


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    search: Annotated[bool, typer.Option("--search", help="Propose faster cuts and sizes.")] = False,
    gpus: Annotated[int | None, typer.Option(help="Search for this number of GPUs.")] = None,
    mean_response: Annotated[int | None, typer.Option(help="Tokens of an answer on average.")] = None,
    command: ForCommand = "launch",
) -> None:
    """Show what a config needs before it runs: batch, memory, weight swap, time; refuse what cannot fit."""
    from hybridrl.config.load import load, load_as
    from hybridrl.config.sft_rm import RMConfig, SFTConfig
    from hybridrl.hosts.machine import Machine
    from hybridrl.plan import command as planning
    from hybridrl.plan import plan_report

    request = planning.Request(search=search, gpus=gpus, mean_response=mean_response)
    if command == "launch":
        found = planning.plan(load(config, overrides or []), Machine.here(), request)
    else:
        loaded = load_as({"sft": SFTConfig, "rm": RMConfig}[command], config, overrides or [])
        found = planning.plan_examples(loaded, Machine.here(), request)
    if as_json:
        return out.print_json(data=plan_report.as_dict(found))
    for heading, text in plan_report.lines(found):
        say(heading, text)


@app.command()
def verify(
    config: ConfigPath,
    overrides: Overrides = None,
    layouts: Annotated[str, typer.Option(help="As in tp2,pp2vpp2; default: all that the model has.")] = "",
    tolerance: Annotated[
        float | None, typer.Option(help="What counts as equal; default 2e-6, Gemma 1e-5.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="The real model, not a small one of its kind.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show that loss and gradients do not depend on how model and batch are cut; exit code 1 if they do."""
    from hybridrl.config.load import load
    from hybridrl.verify import report
    from hybridrl.verify.certificate import Request, certify

    request = Request([name for name in layouts.split(",") if name], tolerance, full)
    show = (lambda _: None) if as_json else lambda text: out.print(escape(text))
    found = certify(load(config, overrides or []), request, show)
    out.print_json(data=report.as_dict(found)) if as_json else out.print(escape(report.conclusion(found)))
    raise typer.Exit(0 if found.holds else 1)


@app.command()
def sft(
    config: ConfigPath, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False
) -> None:
    """Supervised fine-tuning: learn the answers of examples, before reinforcement learning or instead."""
    from hybridrl.launch import supervised_run

    code = supervised_run.launch(
        supervised_run.SFT, config, overrides or [], say, resume=resume, dry_run=dry_run
    )
    raise typer.Exit(code)


@app.command()
def rm(
    config: ConfigPath, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False
) -> None:
    """Train a reward model: learn from pairs of answers which of the two is better."""
    from hybridrl.launch import supervised_run

    code = supervised_run.launch(
        supervised_run.RM, config, overrides or [], say, resume=resume, dry_run=dry_run
    )
    raise typer.Exit(code)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, as runs/NAME.")],
    step: Annotated[int | None, typer.Option(help="Of the checkpoint; default: the newest.")] = None,
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
            f"{proof.max_abs_diff:.1e} nats over {proof.num_tokens} tokens, {exporting.TOLERANCE:g} allowed"
        )
        say("verified" if proof.holds else "differs", f"largest difference of a log-probability {what}")
        raise typer.Exit(0 if proof.holds else 1)


@app.command()
def doctor(
    as_json: AsJson = False,
) -> None:
    """Show what this machine has, what is missing, and the command that gets it."""
    from hybridrl.doctor.findings import examine

    report = examine()
    out.print_json(data=report.as_dict()) if as_json else out.print(report.as_table())
    raise typer.Exit(0 if report.can_run else 2)


@app.command()
def init(
    algorithm: Annotated[str | None, typer.Argument(help="A preset, as in grpo.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="Hugging Face folder, or name on its hub.")] = None,
    data: Annotated[str | None, typer.Option(help="A .jsonl or .parquet, or reasoning_gym:DATASET.")] = None,
    heldout: Annotated[str | None, typer.Option(help="Prompts to evaluate on.")] = None,
    reward: Annotated[str | None, typer.Option(help="As in math_verify, or module:function.")] = None,
    prompt_field: Annotated[str, typer.Option(help="Column with the question.")] = "prompt",
    answer_field: Annotated[str, typer.Option(help="Column with the reference answer.")] = "answer",
    teacher: Annotated[str | None, typer.Option(help="Model folder, for distillation.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: ALGORITHM.yaml.")] = None,
) -> None:
    """Write a short config for an algorithm, a model and data; asks for what is not given."""
    from hybridrl.config.load import parse_as
    from hybridrl.config.schema import Config
    from hybridrl.config.starter import Answers, check_algorithm, starter
    from hybridrl.errors import refuse
    from hybridrl.hosts.machine import Machine
    from hybridrl.launch.preflight import say_absent
    from hybridrl.launch.verdict import SCOPES, verdict

    name = _answer(algorithm, "algorithm", "ALGORITHM, as in hybridrl init grpo")
    check_algorithm(name)
    answers = Answers(
        algorithm=name,
        model=_answer(model, "model folder", "--model FOLDER"),
        data=_answer(data, "prompts (.jsonl, .parquet, reasoning_gym:DATASET)", "--data FILE"),
        heldout=heldout,
        reward=reward,
        prompt_field=prompt_field,
        answer_field=answer_field,
        teacher=teacher,
    )
    path = output or Path(f"{name.replace('/', '-')}.yaml")
    _refuse_existing(path)
    text = starter(answers, path.stem)
    found = verdict(parse_as(Config, text, str(path)), SCOPES["init"], Machine.here())
    refuse(found.errors)
    say_absent(found, say)
    _write_new(path, text)
    say("wrote", f"{path}; next: hybridrl config check {path}")


@import_app.command("verl")
def import_verl(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="run.sh, key=value lines, or a YAML.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: NAME.yaml here.")] = None,
    prompts: Annotated[int | None, typer.Option(help="Rows of the training file: epochs to steps.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, write no file.")] = False,
) -> None:
    """Translate a verl launch; say what has no counterpart here and what does not change the result."""
    from hybridrl.importer.overrides import read
    from hybridrl.importer.verl import translate

    found = translate(read(script, {"HOME": str(Path.home()), "PWD": str(Path.cwd())}), prompts)
    if as_json:
        out.print_json(data=found.as_dict())
        return
    path = output or Path(f"{script.stem}.yaml")
    _write_new(path, found.as_yaml(f"{script.name}, by hybridrl import verl"))
    for heading, rows in found.report():
        out.print(f"[bold]{heading}[/]")
        for source, became, why in rows:
            said = f"{source}  ->  {became}" if became else source
            out.print(f"  {escape(said)}{escape(f'    # {why}') if why else ''}")
    say("wrote", f"{path}; next: hybridrl config check {path}")


def _answer(given: str | None, question: str, flag: str) -> str:
    """What was given, or what a person answers; without a terminal there is nobody to ask."""
    if given is None and not sys.stdin.isatty():
        raise UserError(f"no {question}", fix=f"give {flag}")
    return typer.prompt(question) if given is None else given


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists", fix="choose another with --output")


def _write_new(path: Path, text: str) -> None:
    _refuse_existing(path)
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        why = f"cannot write {path}: {error.strerror}"
        raise UserError(why, fix="choose another with --output") from error


def _keep_traceback(error: BaseException) -> Path:
    with tempfile.NamedTemporaryFile("w", prefix="hybridrl-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    return Path(file.name)
