"""The command line: reads a config, checks it, and hands it to the room that does the work.

The only room that knows everything. What is slow to import is imported where it is used, so that --help
answers at once. Exit codes: 0 done, 1 a failure of ours, 2 a mistake of the user's, 3 a deadline, 75 asked to
stop and saved, 130 interrupted.
"""

import errno
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from typer.exceptions import TyperException

from hybridrl import __version__
from hybridrl.cli import begin, bench_commands, commands, report_commands, serve_commands
from hybridrl.cli.algo_commands import algo_app
from hybridrl.cli.commands import Interrupted
from hybridrl.cli.config_commands import config_app
from hybridrl.cli.console import err, out, tell
from hybridrl.cli.data_commands import data_app
from hybridrl.cli.environment_commands import environment_app
from hybridrl.cli.help import add, group
from hybridrl.cli.reward_commands import reward_app
from hybridrl.errors import HybridRLError

INTERRUPTED = 130

_OF_THE_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG),
    *(errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE),
}
"""Errors of the operating system that are about the user's files and disks, whichever line meets them."""

app = group(
    "Reinforcement learning of language models: [bold]Megatron-core[/] trainers, [bold]SGLang[/] engines "
    "that share their weights, one [bold]YAML[/] per run. Without GPUs both run on the CPU.",
    "hybridrl doctor",
    "hybridrl launch configs/quickstart.yaml",
    "hybridrl config explain",
    completion=True,
)
import_app = group(
    "Turn another framework's run into a config.", "hybridrl import verl run_qwen2-7b.sh -o mine.yaml"
)
add(
    app,
    commands.launch,
    "hybridrl launch configs/quickstart.yaml",
    "hybridrl launch configs/quickstart.yaml run.steps=20 run.name=short",
    "hybridrl launch configs/grpo_qwen72b.yaml --on slurm --dry-run",
)
add(
    app,
    commands.plan,
    "hybridrl plan configs/grpo_qwen72b.yaml",
    "hybridrl plan configs/grpo_qwen72b.yaml --search --gpus 64",
    "hybridrl plan configs/sft_arithmetic.yaml --json",
)
add(
    app,
    commands.verify,
    "hybridrl verify configs/quickstart.yaml",
    "hybridrl verify configs/quickstart.yaml --layouts tp2,pp2vpp2",
)
add(
    app,
    commands.sft,
    "hybridrl sft configs/sft_arithmetic.yaml",
    "hybridrl sft configs/sft_arithmetic.yaml run.name=again --dry-run",
)
add(
    app,
    commands.rm,
    "hybridrl rm configs/rm_arithmetic.yaml",
    "hybridrl rm configs/rm_arithmetic.yaml --resume",
)
add(
    app,
    commands.export,
    "hybridrl export runs/quickstart",
    "hybridrl export runs/quickstart --step 20 --to models/mine --verify",
)
add(app, commands.why, "hybridrl why runs/quickstart")
add(
    app,
    commands.replay,
    "hybridrl replay runs/quickstart/bundles/step_000012",
    "hybridrl replay runs/quickstart/bundles/step_000012 --layout tp2",
    "hybridrl replay runs/a/bundles/step_000012 --against runs/b/bundles/step_000012",
)
add(app, report_commands.report, "hybridrl report runs/quickstart")
add(
    app,
    report_commands.compare,
    "hybridrl compare runs/a runs/b",
    "hybridrl compare runs/a-0 runs/a-1 runs/b-0 runs/b-1 --json",
)
add(
    app,
    serve_commands.evaluate,
    "hybridrl eval runs/quickstart",
    "hybridrl eval runs/quickstart --data more.jsonl --samples 8 evaluate.temperature=1",
    "hybridrl eval Qwen/Qwen3-0.6B --data openai/gsm8k reward=math_verify",
    name="eval",
)
add(
    app,
    serve_commands.chat,
    "hybridrl chat runs/quickstart",
    "hybridrl chat Qwen/Qwen3-0.6B --system 'Answer in one word.' --temperature 0",
)
add(app, commands.doctor, "hybridrl doctor", "hybridrl doctor --json")
add(
    app,
    bench_commands.bench,
    "hybridrl bench step",
    "hybridrl bench step --check",
    "hybridrl bench e2e --peer trl --case smollm2",
)
add(
    app,
    begin.init,
    "hybridrl init",
    "hybridrl init grpo --model Qwen/Qwen3-8B --data prompts.jsonl",
    "hybridrl init dapo --model models/base --data reasoning_gym:chain_sum -o my.yaml",
)
add(
    import_app,
    begin.import_verl,
    "hybridrl import verl run_qwen2-7b.sh",
    "hybridrl import verl run_qwen2-7b.sh --prompts 7473 -o mine.yaml",
    name="verl",
)
app.add_typer(config_app, name="config")
app.add_typer(algo_app, name="algo")
app.add_typer(data_app, name="data")
app.add_typer(reward_app, name="reward")
app.add_typer(environment_app, name="environment")
app.add_typer(import_app, name="import")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the process ends with the code returned."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # where a config's module:name is looked for first, as python itself does
    try:
        code = app(arguments, prog_name="hybridrl", standalone_mode=False)
    except BaseException as error:  # code from outside may raise any, and none is shown as a traceback
        return _written(0 if _is_end_of_completion(error) else show_error(error))
    if code == INTERRUPTED:
        err.print("interrupted")
    return _written(code if isinstance(code, int) else 0)


def _written(code: int) -> int:
    """The exit code of a command that ended with `code`, once its output is written, or cannot be."""
    lost = _lost_output()
    if code or lost is None:
        return code
    return 1 if isinstance(lost, BrokenPipeError) else show_error(lost)


def _lost_output() -> OSError | None:
    """Write what is still in the buffer of the output; returns why it cannot be written, and drops it then,
    since Python would try again at its end, and fail without a word of ours."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return error
    return None


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
        lines, code = [_usage(error)], 2
    elif isinstance(error, OSError) and _is_of_the_machine(error):
        place = f"{error.filename}: " if error.filename else ""
        lines, code = [f"{place}{error.strerror}  (a file or the disk of this machine)"], 2
    else:
        what = "a failure of hybridrl itself"
        if isinstance(error, SystemExit):
            what = f"something ended the command before it was done, by SystemExit: {error}"
        lines, code = [f"{what}; its traceback {_keep_traceback(error)}"], 1
    for line in lines:
        tell("error:", line, gap=1, indent=2, file=err, style="bold red")
    return code


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        out.print(f"hybridrl {__version__}")
    elif context.invoked_subcommand is None:
        out.print(context.get_help())


def _is_end_of_completion(error: BaseException) -> bool:
    """Typer itself ends a process that has answered a shell; code that a command runs must not."""
    if not isinstance(error, SystemExit) or error.code not in {0, None}:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("typer.")


def _usage(error: TyperException) -> str:
    """What is wrong with the words of a command line, and the help to read or the words to write."""
    context, option = getattr(error, "ctx", None), getattr(error, "option_name", "")
    help_of = context.command_path if context else "hybridrl"
    key = option.lstrip("-")
    if key and "." in key:
        return f"{error.format_message()}: a key of the config has no dashes, as in {key}=VALUE"
    return f"{error.format_message()}  (see {help_of} --help)"


def _is_of_the_machine(error: OSError) -> bool:
    no_folder_for_temporary_files = error.errno == errno.ENOENT and error.filename is None
    return error.errno in _OF_THE_MACHINE or no_folder_for_temporary_files


def _keep_traceback(error: BaseException) -> str:
    """The words that say where the traceback is: in a file, or below them if none can be written."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="replace", prefix="hybridrl-", suffix=".log", delete=False
        ) as file:
            file.write(text)
    except OSError:
        return f"is\n{text}"
    return f"is in {file.name}"
