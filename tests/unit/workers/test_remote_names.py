"""Remote calls name a method as a string, which no type checker follows: every such method exists."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hybridrl
from hybridrl.launch.deadlines import CALLS

ROOT = Path(hybridrl.__file__).parent
WORKERS = sorted((ROOT / "workers").glob("*.py"))
ROLLOUT = ROOT / "rollout"
SGLANG, VLLM = ROLLOUT / "sglang", ROLLOUT / "vllm"
OWNER = [ROLLOUT / "process.py", ROLLOUT / "lots.py"]

ROUTES = {
    "actors": (WORKERS, {"all", "one", "outcomes", "_on_ranks"}, WORKERS, "Worker"),
    "SGLang's host": (OWNER, {"call", "_call"}, [SGLANG / "host.py"], "EngineHost"),
    "vLLM's host": (OWNER, {"call", "_call"}, [VLLM / "host.py"], "EngineHost"),
    "schedulers": ([SGLANG / "host.py"], {"_ask_schedulers"}, [SGLANG / "scheduler.py"], "Scheduler"),
}
"""Callee -> files that call it, their functions for that, files of the callee, suffix of its classes."""


@pytest.mark.parametrize("route", ROUTES)
def test_every_method_that_is_called_by_name_exists(route: str) -> None:
    callers, calls, callees, suffix = ROUTES[route]
    named = {name for path in callers for name in _names(path, calls)}
    assert named, "the calls of this route have other names now"
    assert named <= {name for path in callees for name in _methods(path, suffix)}


def _names(path: Path, calls: set[str]) -> Iterator[str]:
    """The first string among the arguments of every call of such a name."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in calls:
            constants = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            yield from [value for value in constants if isinstance(value, str)][:1]


def _methods(path: Path, suffix: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name.endswith(suffix):
            yield from (f.name for f in node.body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef))


OWN_DEADLINE = {"pid", "start", "build", "begin_again", "stop", "end", "alive", "stack_files"}
"""Starts and ends, whose callers give a deadline."""


def test_every_call_of_a_worker_has_a_deadline_of_the_config() -> None:
    of_config = {method for methods in CALLS.values() for method in methods}
    assert sum(map(len, CALLS.values())) == len(of_config), "a call has two deadlines"
    methods = {name for path in WORKERS for name in _methods(path, "Worker") if not name.startswith("_")}
    assert methods - {"rollout_call"} == of_config | OWN_DEADLINE
