"""Which files may open ports and read pickles, as SECURITY.md says."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

LISTENING = {"bind", "listen", "start_server", "create_server", "start_unix_server", "HTTPServer"}
MAY_LISTEN = {
    "cluster/network.py": "asks for a free port on the nodes' network",
    "hosts/facts.py": "asks whether loopback takes connections",
    "sandbox/inside/first.py": "loopback of a box's own network, for the gateway of its program",
    "sandbox/serve.py": "the service of boxes, with a token",
}
PICKLING = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
MAY_PICKLE = {
    "bench/workloads/swap_plans.py": "counts the bytes of what ranks are sent, and reads none",
    "rewards/children.py": "orders of the process that started it",
    "rewards/processes.py": "orders to processes that it started",
    "rollout/channel.py": "a pipe between a worker and the engine's process",
    "rollout/sglang/host.py": "a folder of mode 0700 between processes of an engine",
    "rollout/sglang/scheduler.py": "the other side of that folder",
}


def files() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / "hybridrl").rglob("*.py")):
        yield str(path.relative_to(ROOT / "hybridrl")), ast.parse(path.read_text("utf-8"))


def called(tree: ast.Module) -> Iterator[str]:
    """Names of functions and methods that are called on something other than a signature or ourselves."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            yield node.func.id
        elif isinstance(node.func, ast.Attribute) and not _is_of_another_kind(node.func.value):
            yield node.func.attr


def _is_of_another_kind(value: ast.expr) -> bool:
    text = ast.unparse(value)
    return "signature" in text or text.startswith("self")


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_only_these_files_open_ports() -> None:
    assert {name for name, tree in files() if LISTENING & set(called(tree))} == MAY_LISTEN.keys()


def test_only_these_files_read_pickles() -> None:
    assert {name for name, tree in files() if PICKLING & set(imported(tree))} <= MAY_PICKLE.keys()
    loads = [name for name, tree in files() if "torch.load" in ast.unparse(tree)]
    assert loads == []


def test_no_code_of_a_models_folder_is_run() -> None:
    for name, tree in files():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", name


def test_the_page_names_who_listens() -> None:
    page = (ROOT / "SECURITY.md").read_text("utf-8")
    assert "hybridrl.sandbox.serve" in page and "127.0.0.1" in page
    assert "0.0.0.0" not in (ROOT / "hybridrl/sandbox/serve.py").read_text("utf-8")
