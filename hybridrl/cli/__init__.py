"""The command line: reads a config, checks it, and hands it to the room that does the work.

The only module that knows everything. What is slow to import is imported where it is used, so that --help
answers at once. Exit codes: 0 done, 1 a failure of ours, 2 a mistake of the user's, 3 a deadline, 75 asked to
stop and saved, 130 interrupted.
"""

import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from typer.exceptions import TyperException

from hybridrl import __version__
from hybridrl.errors import HybridRLError, UserError

INTERRUPTED = 130

app = typer.Typer(
    name="hybridrl",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A first run: [bold]hybridrl launch configs/quickstart.yaml[/]",
)
config_app = typer.Typer(
    rich_markup_mode="rich", no_args_is_help=True, help="Look at a config before running it."
)
app.add_typer(config_app, name="config")
algo_app = typer.Typer(
    rich_markup_mode="rich", no_args_is_help=True, help="Look at the algorithms, and check one of your own."
)
app.add_typer(algo_app, name="algo")
import_app = typer.Typer(
    rich_markup_mode="rich", no_args_is_help=True, help="Turn another framework's run into a config."
)
app.add_typer(import_app, name="import")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file of the run.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Set keys: run.steps=20 actor.optimizer.lr=1e-5", show_default=False
    ),
]


class Interrupted(Exception):
    """Ctrl-C while a run was going on; the message says what becomes of it."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the process ends with the code returned."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # where a config's module:name is looked for first, as python itself does
    return guarded(lambda: app(arguments, prog_name="hybridrl", standalone_mode=False))


def guarded(command: Callable[[], object]) -> int:
    """The exit code of a command; what it raises becomes a line for a person, here and nowhere else."""
    try:
        code = command()
    except HybridRLError as error:
        show_error(error)
        return error.exit_code
    except TyperException as error:
        err.print(f"[bold red]error:[/] {escape(error.format_message())}  (see hybridrl --help)")
        return 2
    except Interrupted as stop:
        err.print(f"interrupted: {escape(str(stop))}")
        return INTERRUPTED
    except Exception:
        err.print(
            f"[bold red]error:[/] a failure of hybridrl itself; its traceback is in {_keep_traceback()}"
        )
        return 1
    if code == INTERRUPTED:
        err.print("interrupted")
    return code if isinstance(code, int) else 0


def show_error(error: HybridRLError) -> None:
    """One "error:" line for each mistake."""
    for one in getattr(error, "errors", (error,)):
        err.print(f"[bold red]error:[/] {escape(str(one))}")


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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that the folder holds.")
    ] = False,
    go_on: Annotated[
        bool,
        typer.Option("--continue", help="Go on if something was saved, else begin; as a requeued job."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and start nothing.")] = False,
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
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
) -> None:
    """Show what a config would run, and prove its weight swap: bytes by link, against the least possible."""
    from hybridrl.config.load import load
    from hybridrl.estimate import swap
    from hybridrl.hosts.machine import Machine
    from hybridrl.launch.preflight import preflight
    from hybridrl.launch.swap_plan import element_bytes, read_model, swap_job

    loaded, machine = load(config, overrides or []), Machine.here()
    preflight(loaded, machine, (lambda *_: None) if as_json else say, make_model=False)
    job = swap_job(loaded.config, read_model(loaded))
    found = swap.estimate(job, element_bytes(loaded.config, machine))
    if as_json:
        out.print_json(data={"swap": found.as_dict()})
        return
    for heading, text in swap.lines(found):
        say(heading, text)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
) -> None:
    """Show what this machine has, what is missing, and the command that gets it."""
    from hybridrl.doctor.findings import examine

    report = examine()
    out.print_json(data=report.as_dict()) if as_json else out.print(report.as_table())
    raise typer.Exit(0 if report.can_run else 2)


@app.command()
def init(
    algorithm: Annotated[str | None, typer.Argument(help="A preset, as in grpo.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="Folder in Hugging Face format.")] = None,
    data: Annotated[str | None, typer.Option(help="A .jsonl or .parquet, or reasoning_gym:DATASET.")] = None,
    heldout: Annotated[str | None, typer.Option(help="Prompts to evaluate on.")] = None,
    reward: Annotated[str | None, typer.Option(help="As in math_verify, or module:function.")] = None,
    prompt_field: Annotated[str, typer.Option(help="Column with the question.")] = "prompt",
    answer_field: Annotated[str, typer.Option(help="Column with the reference answer.")] = "answer",
    teacher: Annotated[str | None, typer.Option(help="Model folder, for distillation.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: ALGORITHM.yaml.")] = None,
) -> None:
    """Write a short config for an algorithm, a model and data; asks for what is not given."""
    from hybridrl.config.starter import Answers, check_algorithm, starter

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
    _write_new(path, starter(answers, path.stem))
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


@config_app.command("show")
def config_show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print every value of a config and where it comes from."""
    from hybridrl.config.load import load
    from hybridrl.config.resolved import as_yaml

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
def config_check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check a config against this machine without starting anything."""
    from hybridrl.config.load import load
    from hybridrl.hosts.machine import Machine
    from hybridrl.launch.preflight import preflight
    from hybridrl.launch.prepare import try_data

    loaded = load(config, overrides or [])
    preflight(loaded, Machine.here(), say, make_model=False)
    try_data(loaded, say)
    say("ok", f"hybridrl launch {config} would start")


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

    found = diff(algorithm, a, b)
    for choice in found.choices:
        out.print(
            f"[bold]{escape(choice.key)}[/]  {escape(f'{choice.a} | {choice.b}')}   {escape(choice.why)}"
        )
    out.print(f"\n{'group':>5} {'reward':>7} {'length':>7} {found.a:>10} {found.b:>10}")
    for t in found.trajectories:
        out.print(
            f"{t.group:>5} {t.reward:>7.3f} {t.length:>7} {t.advantage_a:>10.6f} {t.advantage_b:>10.6f}"
        )
    out.print(f"largest difference of an advantage {found.max_abs_advantage:.2e}")
    out.print(f"loss {found.loss_a:.8f} | {found.loss_b:.8f}")
    for note in found.notes:
        out.print(escape(note))


@algo_app.command("check")
def algo_check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An estimator, or module:Name of yours.")],
) -> None:
    """Try an advantage estimator on batches that break wrong ones: order, flat groups, padding, ranks."""
    from hybridrl.algorithms.check import check_estimator
    from hybridrl.config.section import PluginConfig

    checks = check_estimator(PluginConfig(name=name))
    for check in checks:
        mark = "[green]ok[/]" if check.holds else "[red]no[/]"
        out.print(f"{mark}  {escape(check.name)}: {escape(check.text)}")
    raise typer.Exit(0 if all(check.holds for check in checks) else 2)


def say(heading: str, text: str) -> None:
    """A line of what happens before the live view begins."""
    out.print(f"[bold]{escape(heading):<9}[/] {escape(text)}")


def _answer(given: str | None, question: str, flag: str) -> str:
    """What was given, or what a person answers; without a terminal there is nobody to ask."""
    if given is None and not sys.stdin.isatty():
        raise UserError(f"no {question}", fix=f"give {flag}")
    return typer.prompt(question) if given is None else given


def _write_new(path: Path, text: str) -> None:
    if path.exists():
        raise UserError(f"{path} exists", fix="choose another with --output")
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        why = f"cannot write {path}: {error.strerror}"
        raise UserError(why, fix="choose another with --output") from error


def _keep_traceback() -> Path:
    with tempfile.NamedTemporaryFile("w", prefix="hybridrl-", suffix=".log", delete=False) as file:
        traceback.print_exc(file=file)
    return Path(file.name)
