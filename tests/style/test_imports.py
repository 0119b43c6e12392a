"""What tests, benchmarks and launchers import from hybridrl is there: type checks leave most of them out. So
are the modules that scripts, configs and container files name.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUTSIDE = [path for folder in ("tests", "benchmarks", "launchers") for path in (ROOT / folder).rglob("*.py")]

SCRIPTS = [
    path
    for folder in (".ci", "requirements", "docker", "launchers", "configs", "hybridrl")
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.suffix not in {".py", ".pyc", ".json", ".so", ".c", ".lock", ".md"}
] + [ROOT / "Makefile"]


def source(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()), None)


@cache
def names(path: Path) -> frozenset[str]:
    """Everything that a module binds, at any depth: a superset of what it exports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
    return frozenset(found)


def missing(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            wanted = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for module, name in wanted:
            if module.partition(".")[0] != "hybridrl":
                continue
            path = source(module)
            if not path or (name and name not in names(path) and not source(f"{module}.{name}")):
                yield f"{node.lineno}: {module}{f'.{name}' if name else ''}"


def test_what_is_imported_is_there() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{fault}" for path in OUTSIDE for fault in missing(path.read_text("utf-8"))
    ]
    assert not faults, "\n".join(faults)


def unknown(text: str) -> list[str]:
    """Dotted names below hybridrl that are neither a module nor a name in one."""
    found = re.findall(r"\bhybridrl((?:\.[a-z_]\w*)+)(?::(\w+))?", text)
    return [
        f"hybridrl{module}"
        for module, name in found
        if not (path := source(f"hybridrl{module}")) or (name and name not in names(path))
    ]


def test_modules_that_scripts_and_configs_name_are_there() -> None:
    faults = [
        f"{path.relative_to(ROOT)}: {name}" for path in SCRIPTS for name in unknown(path.read_text("utf-8"))
    ]
    assert not faults, "\n".join(faults)
    assert len(SCRIPTS) > 20


def test_what_is_not_there_is_found() -> None:
    assert unknown("python -m hybridrl.nowhere") == ["hybridrl.nowhere"]
    assert unknown('make: "hybridrl.models.tiny:nothing"') == ["hybridrl.models.tiny"]
    assert not unknown('import hybridrl.launch.local; make: "hybridrl.models.tiny:qwen3_arithmetic"')
    assert list(missing("from hybridrl.errors import Nothing")) == ["1: hybridrl.errors.Nothing"]
    assert list(missing("import hybridrl.nowhere")) == ["1: hybridrl.nowhere"]
    assert not list(missing("from hybridrl import config\nfrom hybridrl.errors import ConfigError"))
