"""Tables of a page about the project's own rewards and tasks, made from the code."""

from collections.abc import Iterator

from hybridrl.config.plugin_options import Described, described
from hybridrl.rewards.plugin import RULES

TASKS = "hybridrl.data.tasks"


def table(package: str, heading: str) -> str:
    """Every plug-in of a package: its name, what its module says it is, its options with their defaults."""
    rows = [f"| {heading} | options |", "|---|---|---|"]
    rows += [f"| `{p.name}` | {_cell(p.about)} | {'<br>'.join(_options(p))} |" for p in described(package)]
    return "\n".join(rows)


def rewards() -> str:
    return table(RULES, "`reward.name` | what an answer earns")


def tasks() -> str:
    return table(TASKS, "`task` | what its rows are")


def _options(plugin: Described) -> Iterator[str]:
    """Those that a config may set; the seed of a task is the run's, unless a config gives one."""
    for option in plugin.options:
        default = "(required)" if option.default is None else f"= {_cell(option.default)}"
        yield f"`{option.name}` {default}" + (f": {_cell(option.meaning)}" if option.meaning else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
