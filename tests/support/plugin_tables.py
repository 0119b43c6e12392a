"""Tables of a page about the project's own rewards and tasks, made from the code."""

import ast
import inspect
import itertools
import re
from collections.abc import Callable, Iterator

from hybridrl import registry
from hybridrl.rewards.plugin import RULES

TASKS = "hybridrl.data.tasks"


def table(package: str, heading: str) -> str:
    """Every plug-in of a package: its name, what its module says it is, its options with their defaults."""
    rows = [f"| {heading} | options |", "|---|---|---|"]
    for name in registry.names(package):
        plugin = registry.find(package, name)
        module = inspect.getmodule(plugin)
        about = re.sub(r"\s+", " ", (inspect.getdoc(module) or "").partition("\n\n")[0])
        meanings = _meanings(plugin)
        cells = [f"{option}{meanings.get(option.split('`')[1], '')}" for option in options(plugin)]
        rows.append(f"| `{name}` | {_cell(about)} | {'<br>'.join(cells)} |")
    return "\n".join(rows)


def rewards() -> str:
    return table(RULES, "`reward.name` | what an answer earns")


def tasks() -> str:
    return table(TASKS, "`task` | what its rows are")


def options(plugin: Callable) -> Iterator[str]:
    """Those that a config may set; the seed of a task is the run's, unless a config gives one."""
    for parameter in inspect.signature(plugin).parameters.values():
        if parameter.default is parameter.empty and parameter.name != "seed":
            yield f"`{parameter.name}` (required)"
        elif parameter.name != "seed":
            yield f"`{parameter.name}` = {_cell(_yaml(parameter.default))}"


def _meanings(plugin: Callable) -> dict[str, str]:
    """What the lines under the fields of a class say of them."""
    found = {}
    if isinstance(plugin, type):
        (source,) = ast.parse(inspect.getsource(plugin)).body
        assert isinstance(source, ast.ClassDef)
        for node, after in itertools.pairwise(source.body):
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
                text = re.sub(r"\s+", " ", ast.literal_eval(after.value)).removesuffix(".")
                found[ast.unparse(node.target)] = f": {_cell(text)}"
    return found


def _yaml(value: object) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return {"None": "null", "True": "true", "False": "false"}.get(text, text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
