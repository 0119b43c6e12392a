"""No dead key and no second home for a value: every key is read, and nobody writes a config."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridrl.config import keys
from hybridrl.config.readers import last_name, names_of_sections, readers, reads_of, sections

ROOT = Path(__file__).parents[2] / "hybridrl"

VALUES = sorted({key.name for root in keys.ROOTS for key in keys.all_keys(root) if key.section is None})


@pytest.mark.parametrize("key", VALUES)
def test_every_key_is_read(key: str) -> None:
    assert readers(key), f"nobody reads {key}"


def wrong_uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Assignments to a section's fields, and fields asked for by a name in quotes."""
    names = names_of_sections(tree)

    def is_field(owner: ast.expr, name: object) -> bool:
        return any(name in sections()[kind].model_fields for kind in names.get(last_name(owner), ()))

    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and is_field(node.value, node.attr)
        ):
            yield node.lineno, f"assigns {last_name(node.value)}.{node.attr}"
        if isinstance(node, ast.Call) and last_name(node.func) in {"getattr", "hasattr", "setattr"}:
            owner, name = node.args[:2]
            if isinstance(name, ast.Constant) and is_field(owner, name.value):
                yield node.lineno, f"{last_name(node.func)} of {last_name(owner)}.{name.value}"


def test_nobody_writes_a_config_or_asks_it_by_name() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.parent.name != "config"
        for line, what in wrong_uses(ast.parse(path.read_text("utf-8")))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "code", ["cfg.parallel.tp = 2", "getattr(cfg.run, 'seed', 1)", "hasattr(cfg.batch, 'epochs')"]
)
def test_a_wrong_use_is_found(code: str) -> None:
    assert list(wrong_uses(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "def f(cfg): return cfg.actor.parallel.tp",
        "def f(parallel: TrainParallel): return parallel.tp",
        "def f(cfg):\n    sizes = cfg.actor.parallel\n    return sizes.tp",
        "class A:\n    def __init__(self, p: TrainParallel): self._p = p\n    def f(self): return self._p.tp",
        "def f(cfg):\n    a, b = cfg.actor.parallel, cfg.batch\n    return a.tp",
    ],
)
def test_a_read_is_found(code: str) -> None:
    assert ("TrainParallel", "tp") in {read for read, _ in reads_of(ast.parse(code))}


@pytest.mark.parametrize("code", ["def f(mesh): return mesh.tp", "def f(cfg): cfg.actor.parallel.tp = 2"])
def test_another_objects_attribute_is_no_read(code: str) -> None:
    assert ("TrainParallel", "tp") not in {read for read, _ in reads_of(ast.parse(code))}
