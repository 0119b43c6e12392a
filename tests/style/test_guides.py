"""What the guides say is what the code does: generated pages, exit codes, messages, and numbers of
plans."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
from documented import ROOT
from typer.core import TyperGroup

from hybridrl import cli, errors
from hybridrl.config.load import load
from hybridrl.errors import ResourceError
from hybridrl.hosts.machine import Machine
from hybridrl.launch.stop import STOPPED
from hybridrl.observe.document import HEALTHY, part_of, render
from hybridrl.observe.names import METRICS, describe
from hybridrl.plan.command import Request, plan
from hybridrl.plan.plan_report import as_dict

DOCS = ROOT / "docs"


def rows(page: Path, heading: str = "") -> list[list[str]]:
    """Cells of the table rows below a heading of a page, without head and rule."""
    text = page.read_text("utf-8").partition(heading)[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rule = [i for i, row in enumerate(cells) if set("".join(row)) <= set("-:")]
    return [row for i, row in enumerate(cells) if i not in rule and i + 1 not in rule]


# --- metrics ---


def test_the_page_of_metrics_is_current() -> None:
    page = (DOCS / "metrics.md").read_text("utf-8")
    assert page == render(), "python -m hybridrl.observe.document > docs/metrics.md"


def test_every_metric_is_in_a_table() -> None:
    assert [name for name in METRICS if part_of(name) is None] == []
    assert HEALTHY.keys() <= METRICS.keys()


FIRST_PARTS = {name.partition("/")[0] for name in METRICS}
PARTIAL = {"critic/score", "critic/rewards", "critic/advantages", "critic/returns", "actor/hinge_stopped"}
"""Names without their mean, max or min, and the metric of an example."""


def test_every_metric_that_the_code_names_is_described() -> None:
    pattern = re.compile(rf'"((?:{"|".join(FIRST_PARTS)})/[\w./]*[a-z0-9])"')
    ours = [path for path in sources() if "peers" not in path.parts]  # those of other frameworks are theirs
    found = {name for path in ours for name in pattern.findall(path.read_text("utf-8"))}
    assert len(found) > 80
    assert sorted(name for name in found - PARTIAL if describe(name) is None) == []


# --- exit codes ---


def error_classes() -> Iterator[type[errors.HybridRLError]]:
    for value in vars(errors).values():
        if inspect.isclass(value) and issubclass(value, errors.HybridRLError):
            yield value


def test_the_table_of_errors_is_that_of_the_code() -> None:
    page = {name.strip("`"): int(code) for name, code, _ in rows(DOCS / "exit_codes.md", "## What raises")}
    assert page == {kind.__name__: kind.exit_code for kind in error_classes()}


def test_the_table_of_codes_is_that_of_the_code() -> None:
    page = {int(code) for code, *_ in rows(DOCS / "exit_codes.md", "# Exit codes")}
    raised = {kind.exit_code for kind in error_classes()}
    assert page == {0, *raised, STOPPED, cli.INTERRUPTED}


def leaves(group: TyperGroup, path: str = "hybridrl") -> Iterator[tuple[str, ast.AST]]:
    """Every command of the command line, and the code of its function."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from leaves(command, f"{path} {name}")
        else:
            assert command.callback is not None
            source = inspect.getsource(inspect.unwrap(command.callback))
            yield f"{path} {name}", ast.parse(textwrap.dedent(source))


def own_codes(function: ast.AST) -> set[int]:
    """Codes besides 0 that a command ends with itself: the numbers in its typer.Exit(...)."""
    exits = [n for n in ast.walk(function) if isinstance(n, ast.Call) and ast.unparse(n.func) == "typer.Exit"]
    numbers = [n.value for call in exits for n in ast.walk(call) if isinstance(n, ast.Constant)]
    return {number for number in numbers if isinstance(number, int) and number}


def test_the_table_of_commands_is_that_of_the_code() -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    code = dict(leaves(group))
    page: dict[str, set[int]] = {}
    for names, number, _ in rows(DOCS / "exit_codes.md", "## Codes of every command"):
        for name in re.findall(r"`(hybridrl [a-z ]+?)(?: --.*?)?`", names):
            page.setdefault(name, set()).update({int(number)} if number.isdigit() else ())
    without = re.search(
        r"\n\n(`hybridrl.*?) have no code of their own", (DOCS / "exit_codes.md").read_text(), re.S
    )
    assert without
    none = set(re.findall(r"`(hybridrl [^`]+)`", without[1]))
    assert page.keys() | none == code.keys() and not page.keys() & none
    assert all(own_codes(function) <= page.get(name, set()) for name, function in code.items())


# --- troubleshooting ---

GAP = "..."


def sources() -> list[Path]:
    return sorted((ROOT / "hybridrl").rglob("*.py"))


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


@cache
def messages() -> str:
    """Every string of the program, one a line, with GAP for the values in it."""
    nodes = (node for path in sources() for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    texts = {text for node in nodes if (text := _text(node))}
    return "\n".join(re.sub(r"(\.\.\.)+", GAP, text) for text in sorted(texts))


def symptoms() -> list[str]:
    return re.findall(r"^### (.+)$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)


def quoted() -> list[str]:
    return [found[1] for line in symptoms() if (found := re.fullmatch(r"`([^`]+)`", line))]


def is_of_the_program(message: str) -> bool:
    return message in messages()


def test_there_are_many_symptoms() -> None:
    assert len(symptoms()) >= 25 and len(set(symptoms())) == len(symptoms())


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_one_of_the_program(message: str) -> None:
    assert is_of_the_program(message)


def test_an_invented_message_is_found() -> None:
    known = next(message for message in quoted() if GAP in message)
    assert is_of_the_program(known)
    assert not is_of_the_program(f"{known}, and the moon")


def test_every_symptom_has_a_cause_and_a_change() -> None:
    text = (DOCS / "troubleshooting.md").read_text("utf-8")
    entries = [part.partition("\n## ")[0] for part in text.split("\n### ")[1:]]
    assert [e.splitlines()[0] for e in entries if "**Cause.**" not in e or "**Change.**" not in e] == []


@pytest.mark.parametrize(
    "page", ["troubleshooting.md", "tuning.md", "walkthrough_grpo.md", "walkthrough_ppo.md"]
)
def test_named_metrics_exist(page: str) -> None:
    pattern = re.compile(rf"`((?:{'|'.join(FIRST_PARTS)})/[\w/]+)`")
    found = set(pattern.findall((DOCS / page).read_text("utf-8")))
    assert found and [name for name in sorted(found) if describe(name) is None] == []


# --- tuning ---


@cache
def planned(config: str, overrides: tuple[str, ...], mean_response: int | None = None) -> list[str]:
    """Peaks in training and in rollout, and seconds of the phases, as the tables have them."""
    request = Request(search=False, gpus=None, mean_response=mean_response)
    try:
        found = as_dict(plan(load(ROOT / config, list(overrides)), Machine.here(), request))
    except ResourceError as error:
        needs = re.search(r"does not fit: (\w+).* needs ([\d.]+) GB", error.what)
        assert needs, error
        return [f"{needs[2]} GB in {needs[1]}", "", "", "", "", "does not fit"]
    peaks = [
        max(phase["peak"] for phase in found["memory"] if phase["name"].startswith(kind))
        for kind in ("train", "rollout")
    ]
    seconds = found["time_s"]["h100"]
    parts = [seconds[name] for name in ("generate", "logprobs", "train", "total")]
    return [*(f"{peak / 1e9:.1f} GB" for peak in peaks), *(f"{part:,.0f} s" for part in parts)]


def plan_rows() -> Iterator[tuple[str, str, list[str]]]:
    """(config, change, cells) of every row of the page's tables of plans."""
    for section in (DOCS / "tuning.md").read_text("utf-8").split("\n### "):
        config = re.search(r"^Config: \[?`(configs/\w+\.yaml)`", section, re.MULTILINE)
        for line in section.splitlines():
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            if config and len(cells) == 7 and " GB" in cells[1]:
                yield config[1], cells[0], cells[1:]


def test_the_tables_of_tuning_are_what_plan_says() -> None:
    found = list(plan_rows())
    assert len(found) > 20
    wrong = {}
    for config, change, cells in found:
        said = planned(config, tuple(re.findall(r"`([^`]+)`", change)))
        if said != cells:
            wrong[f"{config} {change}"] = said
    assert not wrong, "\n".join(f"{row}: {' | '.join(said)}" for row, said in wrong.items())


def test_the_mean_length_has_the_effect_that_tuning_says() -> None:
    page = " ".join((DOCS / "tuning.md").read_text("utf-8").split())
    said = re.search(r"with ([\d,]+) tokens in place of 4,096 the step above takes (\d+ s)", page)
    assert said
    mean_response = int(said[1].replace(",", ""))
    assert planned("configs/grpo_qwen72b.yaml", (), mean_response)[-1] == said[2]
