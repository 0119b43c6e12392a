"""Lists every plug-in with its formula, source, options and use, read from its file without importing it.

The head of a plug-in's file is its entry: a first sentence that names it, then `Source:`, `Formula:` and
`Use:`.
"""

import ast
import difflib
import re
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridrl.algorithms.columns import Column
from hybridrl.algorithms.declared import by_default, folder, parents, plugin_class
from hybridrl.algorithms.needs import MODELS, Needs, estimator_columns
from hybridrl.algorithms.settings import SETTINGS
from hybridrl.columns import TURN_COLUMNS, not_computed
from hybridrl.config.frameworks.absent import ABSENT
from hybridrl.config.presets import PRESETS
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import ConfigError

TITLES = {
    "estimator": "Advantage estimators",
    "policy_loss": "Policy losses",
    "aggregate": "Aggregation",
    "kl": "KL divergence",
    "correction": "Rollout corrections",
    "value_loss": "Value losses",
    "shaping": "Reward shaping",
}

CONFIG_KEYS = {
    "estimator": "algorithm.estimator",
    "policy_loss": "algorithm.loss",
    "aggregate": "algorithm.aggregate",
    "kl": "algorithm.kl.estimator",
    "correction": "algorithm.correction",
    "shaping": "algorithm.shaping",
}
"""Kind of plug-in -> config key that names one."""

UNUSABLE = "not usable yet: nothing computes it"
"""Mark of a column that no part of a run computes."""

ENVIRONMENT = "with an environment"
"""Mark of a column that only a run with an environment has."""

_FIELDS = ("Source", "Formula", "Use")


@dataclass(frozen=True, slots=True)
class Option:
    name: str
    type: str
    default: str | None
    """The default as source text; None: the option is required."""

    about: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One plug-in."""

    kind: str
    name: str
    title: str
    source: str
    formula: str
    use: str
    about: str
    """Docstring of its class."""

    options: tuple[Option, ...]
    needs: str
    """Columns that it needs with default options, each with the model that computes it, or a mark that
    nothing does."""


def entries(kind: str | None = None) -> list[Entry]:
    """Every plug-in of the project, in the order of TITLES and then of names."""
    kinds = [kind] if kind else list(TITLES)
    return [_entry(k, path) for k in kinds for path in sorted(folder(k).glob("*.py")) if path.stem[0] != "_"]


def listing() -> dict[str, Any]:
    """What `hybridrl algo list --json` prints: plug-ins by kind, settings and presets."""
    plugins = {kind: [asdict(entry) for entry in entries(kind)] for kind in TITLES}
    settings = [asdict(setting) for setting in SETTINGS]
    presets = [{"name": n, "about": p.about, "needs": needs_of(n)} for n, p in PRESETS.items()]
    return {**plugins, "setting": settings, "preset": presets}


def find(name: str) -> list[Entry]:
    """The plug-ins of this name, of any kind (grpo is an estimator and a preset, vapo a loss and a preset).

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    everything = entries()
    if name in ABSENT:
        raise ConfigError(f"there is no {name}: {ABSENT[name]}")
    found = [entry for entry in everything if entry.name == name]
    others = set(PRESETS) | {setting.name for setting in SETTINGS}
    if not found and name not in others:
        known = sorted({entry.name for entry in everything} | others)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ConfigError(
            f"there is no algorithm {name!r}", fix=f"did you mean {' or '.join(near)}?" if near else ""
        )
    return found


def explain(name: str) -> Iterator[tuple[str, str]]:
    """Pairs of a label and a text about everything of this name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    for entry in find(name):
        where = f" ({CONFIG_KEYS[entry.kind]}: {name})" if entry.kind in CONFIG_KEYS else ""
        yield entry.name, f"{TITLES[entry.kind]}{where}: {entry.title}"
        yield "formula", entry.formula
        yield "source", entry.source
        yield "use", entry.use
        if entry.needs:
            yield "needs", entry.needs
        for option in entry.options:
            default = "required" if option.default is None else f"default {option.default}"
            yield f"  {option.name}", f"{option.type}, {default}. {option.about}".rstrip(" .") + "."
    for setting in SETTINGS:
        if setting.name == name:
            yield setting.name, f"Setting ({setting.key}): {setting.title}"
            yield from (("formula", setting.formula), ("source", setting.source), ("use", setting.use))
    if name in PRESETS:
        yield "preset", PRESETS[name].about
        if needs := needs_of(name):
            yield "needs", needs
        yield from ((f"  {key}", value) for key, value in flat(PRESETS[name].algorithm))


def needs_of(preset: str) -> str:
    """Columns that a preset needs, as Entry.needs."""
    return _needs(Needs.of(AlgorithmConfig.model_validate(dict(PRESETS[preset].algorithm))).columns)


def flat(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Leaves of nested mappings under dotted keys; the name of a plug-in is listed under the plug-in's
    key."""
    if not hasattr(tree, "items"):
        return [(prefix, str(tree))]
    if not tree:
        return [(prefix, "with its defaults")]
    found = []
    for key, value in tree.items():
        found += flat(value, prefix if key == "name" and prefix else f"{prefix}.{key}".lstrip("."))
    return found


def _entry(kind: str, path: Path) -> Entry:
    tree = ast.parse(path.read_text("utf-8"))
    head = ast.get_docstring(tree) or ""
    fields = {name.lower(): _field(head, name) for name in _FIELDS}
    plugin = plugin_class(tree, path)
    about = ast.get_docstring(plugin) or ""
    return Entry(
        kind,
        path.stem,
        _line(head.partition("\n\n")[0]),
        **fields,
        about=_line(about),
        options=_options(plugin, path),
        needs=_needs(_of_plugin(kind, path.stem)),
    )


def _needs(columns: Set[Column]) -> str:
    by = {name: f" (by the {model})" for name, model in MODELS.items()}
    by |= dict.fromkeys(TURN_COLUMNS, f" ({ENVIRONMENT})")
    by |= dict.fromkeys(not_computed(columns), f" ({UNUSABLE})")
    return ", ".join(f"{name}{by.get(name, '')}" for name in sorted(columns))


def _of_plugin(kind: str, name: str) -> frozenset[Column]:
    plugin = by_default(kind, name)
    if kind == "estimator":
        return estimator_columns(plugin, None)
    return frozenset(getattr(plugin, "needs", ())) - getattr(plugin, "makes", frozenset())


def _field(head: str, name: str) -> str:
    """The text after "Name:", with the indented lines that continue it."""
    match = re.search(rf"^{name}: (.*(?:\n    .*)*)", head, re.MULTILINE)
    assert match, f"no {name}: in {head[:60]!r}"
    return _line(match.group(1))


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _options(plugin: ast.ClassDef, path: Path) -> tuple[Option, ...]:
    """Fields of the dataclass, with those that it inherits from another plug-in."""
    found = {}
    for parent, sibling in parents(plugin, path):
        found.update({option.name: option for option in _options(parent, sibling)})
    for node, after in zip(plugin.body, [*plugin.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and not _is_internal(node):
            about = (
                after.value.value
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                else ""
            )
            default = ast.unparse(node.value) if node.value is not None else None
            name = ast.unparse(node.target)
            found[name] = Option(name, ast.unparse(node.annotation), default, _line(str(about)))
    return tuple(found.values())


def _is_internal(node: ast.AnnAssign) -> bool:
    """Whether it is a class attribute, or a field that is no option."""
    return "ClassVar" in ast.unparse(node.annotation) or (
        node.value is not None and "init=False" in ast.unparse(node.value)
    )
