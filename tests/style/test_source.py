"""Habits of the source that a reviewer should not have to look for."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hybridrl"
TREES = {path: ast.parse(path.read_text("utf-8"), str(path)) for path in sorted(PACKAGE.rglob("*.py"))}

PROCESS_EDGES: set[str] = {
    "cli/__init__.py:main",
    "controller/stream.py:_guarded",
    "environments/child.py:_answer",
    "environments/child.py:_said",
    "environments/child.py:_serve",
    "environments/tools/calls.py:_made",  # told to the policy
    "environments/tools/mcp.py:_own",
    "launch/run.py:_write_report",  # told as a warning: the run is done
    "library/run_thread.py:_live",  # handed to the thread that opened the run
    "observe/sink_thread.py:_abandon",
    "observe/sink_thread.py:_serve",
    "observe/sink_thread.py:view",
    "rewards/children.py:main",
    "rewards/children.py:_text",
    "rewards/children.py:_work",
    "rollout/channel.py:_answer",
    "rollout/episodes.py:_run",
    "rollout/sglang/scheduler.py:_answer",
    "rollout/sglang/serve.py:_send",
    "rollout/sglang/serve.py:_take",
    "rollout/vllm/core.py:_loop",
    "rollout/vllm/core.py:run",
    "rollout/vllm/worker.py:rollout_call",
    "sandbox/inside/programs.py:_child",
    "sandbox/inside/session.py:_text",
    "sandbox/inside/session.py:call",
    "sandbox/inside/session.py:run_code",
    "trainer/store.py:_tried",  # told as a warning, or raised: each protocol of fsspec has its own errors
    "verify/ranks.py:_serve",
    "workers/open_groups.py:guarded",
    "workers/replacing.py:_replace",
}
"""Where a broad except ends an error's way: process edges, which hand it to the peer or to a person."""

ENVIRONMENT_READERS = {
    "hosts",
    "cluster/env.py",
    "rollout/vllm/core.py",
    "sandbox/inside/programs.py",  # gives a program in a box its environment
    "config/secrets.py",  # what is a secret there is one in a config
    "observe/sinks/wandb.py",  # W&B's own switches and key are there
}

UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def enclosing(tree: ast.AST, wanted: ast.AST) -> str:
    """Name of the innermost function around a node."""
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(inner is wanted for inner in ast.walk(node))
    ]
    return around[-1].name if around else "module"


def broad_excepts() -> Iterator[str]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                caught = (
                    {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
                    if node.type
                    else {"BaseException"}
                )
                raised_again = isinstance(node.body[-1], ast.Raise)
                if caught & {"Exception", "BaseException"} and not raised_again:
                    yield f"{place(path)}:{enclosing(tree, node)}"


def test_broad_excepts_are_listed() -> None:
    assert set(broad_excepts()) == PROCESS_EDGES


def test_the_environment_is_read_in_one_place() -> None:
    faults = [
        f"{place(path)}:{node.lineno}"
        for path, tree in TREES.items()
        if not any(place(path).startswith(allowed) for allowed in ENVIRONMENT_READERS)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "putenv"})
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and {"environ", "getenv"} & {a.name for a in node.names}
        )
    ]
    assert not faults, "\n".join(faults)


def test_nothing_is_unfinished() -> None:
    faults = [
        f"{place(path)}:{number}"
        for path in TREES
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert not faults, "\n".join(faults)


def test_not_implemented_says_what() -> None:
    faults = [
        f"{place(path)}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        and (
            getattr(node.exc, "id", "") == "NotImplementedError"
            or (
                isinstance(node.exc, ast.Call)
                and getattr(node.exc.func, "id", "") == "NotImplementedError"
                and not node.exc.args
            )
        )
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", TREES, ids=place)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(TREES[path]), "no docstring at the head"


def test_no_package_of_leftovers() -> None:
    names = {part for path in TREES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


@pytest.mark.parametrize("word", ["assert True", "pytest.skip()", "# noqa\n", "# type: ignore\n"])
def test_no_blanket_exemption(word: str) -> None:
    here = Path(__file__)
    found = [p for p in [*TREES, *ROOT.glob("tests/**/*.py")] if p != here and word in p.read_text("utf-8")]
    assert not found, found
