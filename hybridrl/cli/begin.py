"""Commands that write a first config: from answers, or from another framework's run."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hybridrl.cli.console import out, say, show
from hybridrl.config.files import atomic_write
from hybridrl.errors import UserError


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


def import_verl(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="run.sh, key=value lines, or a YAML.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: NAME.yaml here.")] = None,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Rows of the training file: epochs to steps.")
    ] = None,
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
            show(f"  {said}    # {why}" if why else f"  {said}", indent=6)
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
        atomic_write(path, text)
    except OSError as error:
        why = f"cannot write {path}: {error.strerror}"
        raise UserError(why, fix="choose another with --output") from error
