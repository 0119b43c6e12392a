"""Only the algorithms know their names: all other code asks what the configured one needs."""

import ast
from collections.abc import Iterator
from pathlib import Path

from hybridrl.config.presets import PRESETS

ROOT = Path(__file__).parents[2] / "hybridrl"
PLUGINS = {
    path.stem for kind in ("estimators", "policy_losses") for path in ROOT.glob(f"algorithms/{kind}/*.py")
}
NAMES = (PLUGINS | set(PRESETS)) - {"__init__"}

TABLES = ("algorithms/", "config/presets.py", "config/compatibility.py", "config/frameworks/", "importer/")
"""What may name them: they themselves, the rows of presets, and the names of another framework."""


def texts(node: ast.AST | None) -> set[str]:
    found = ast.walk(node) if node is not None else ()
    return {one.value for one in found if isinstance(one, ast.Constant) and isinstance(one.value, str)}


def compared(node: ast.AST) -> set[str]:
    """Literal texts that a value is compared with, looked up among or matched against."""
    if isinstance(node, ast.Compare):
        return set().union(*(texts(side) for side in (node.left, *node.comparators)))
    if isinstance(node, ast.Dict):
        return set().union(*(texts(key) for key in node.keys))
    return texts(node) if isinstance(node, ast.Set | ast.MatchValue) else set()


def questions(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        yield from ((getattr(node, "lineno", 0), name) for name in sorted(compared(node) & NAMES))


def test_no_code_asks_for_an_algorithm_by_name() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted(ROOT.rglob("*.py"))
        if not path.relative_to(ROOT).as_posix().startswith(TABLES)
        for line, name in questions(path.read_text("utf-8"))
    ]
    assert not faults, "\n".join(faults)


def test_every_way_of_asking_is_seen() -> None:
    for source in (
        "held = cfg.estimator.name == 'gae'",
        "held = 'prime' != name",
        "one = name in {'ppo', 'vapo'}",
        "one = name in ('remax', 'x')",
        "beside = {'gae': 1}.get(name)",
        "match name:\n    case 'copg':\n        pass",
    ):
        assert list(questions(source)), source
    assert not list(questions("estimator = PluginConfig(name='grpo'); x = 'value' in needs"))
