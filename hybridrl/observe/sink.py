"""The Sink role: a tool that gets the records of a run, besides metrics.jsonl. `observe.sinks` names them.

A sink of the project is a file in sinks/; one of your own is a class that is derived from `Sink`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from hybridrl import registry
from hybridrl.config.options import make
from hybridrl.config.section import PluginConfig
from hybridrl.errors import ResourceError
from hybridrl.observe.record import Record
from hybridrl.outside import user_code

SINKS = "hybridrl.observe.sinks"
KEY = "observe.sinks"

Status = Literal["FINISHED", "FAILED", "KILLED"]
"""How a session ended; KILLED by a signal, and a resume goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkRun:
    """The run that a sink gets the records of."""

    folder: Path
    """The folder of the run, absolute."""

    resume_step: int | None
    """Updates of the checkpoint that this session goes on from; None: a new run."""

    config: Mapping[str, Any]
    """The resolved config, nested, as JSON has it; secrets are masked."""


class Sink:
    """One tool. A thread of its own makes every call but that of the constructor, and those marked below.

    A method may take its time, and may raise: the run goes on. What it was called with comes again after a
    pause, so `open` may be called again, too.
    """

    label: ClassVar[str] = ""
    """What a person calls it; "": the name of its class."""

    package: ClassVar[str] = ""
    """The top module that `open` imports; "": none that could be missing."""

    requirement: ClassVar[str] = ""
    """What pip installs it by."""

    def __init__(self, **options: Any) -> None:
        """The options of the config, checked against this signature. Imports nothing, and opens nothing."""

    def refuse(self) -> None:
        """Refuse what would fail on this machine. Called before any work starts, from the main thread.

        Raises:
            ResourceError: the tool is not installed.
        """
        if self.package and find_spec(self.package) is None:
            raise ResourceError(
                f"{self.label} is a sink of this run, and {self.package} is not installed",
                where=KEY,
                fix=f"pip install '{self.requirement}', or leave it out of {KEY}",
            )

    def open(self, run: SinkRun) -> None:
        """Import the tool and begin, or go on with, its run."""

    def write(self, records: Sequence[Record]) -> None:
        """Take records, oldest first; metrics that are not finite numbers were left out."""
        raise NotImplementedError(f"{type(self).__name__} does not write")

    def keep(self, path: Path) -> None:
        """Take a file of the run folder, as resolved.yaml or summary.json; leave it if there is no place."""

    def close(self, status: Status) -> None:
        """Hand over what is left; the session has ended."""

    def abandon(self) -> None:
        """End what would keep this process from its end: the deadline is over, or `close` failed for good.

        Called from the main thread, once, while the sink's thread may stand still in another method.
        """

    def view(self, folder: Path) -> str:
        """The command, or the address, at which a person sees the run in this folder; "": there is none.

        Called from the main thread.
        """
        return ""


def load_sinks(entries: Iterable[str | dict[str, Any]]) -> dict[str, Sink]:
    """The sinks of a config by name, made with their options, not opened.

    Args:
        entries: as observe.sinks has them.

    Raises:
        ConfigError: no such sink, or an option that it does not take.
        UserCodeError: code from outside raises while it is imported or made.
    """
    plugins = map(PluginConfig.model_validate, entries)
    return {plugin.name: _made(plugin) for plugin in plugins}


def refuse_missing_sinks(entries: Iterable[str | dict[str, Any]]) -> None:
    """
    Raises:
        HybridRLError: as load_sinks, or this machine lacks what a sink needs.
        UserCodeError: `refuse` of a sink from outside raises another error.
    """
    for name, sink in load_sinks(entries).items():
        with user_code(name, key=KEY, where=KEY, plugin=sink):
            sink.refuse()


def _made(plugin: PluginConfig) -> Sink:
    roles = ("label", "refuse", "open", "write", "keep", "close", "abandon", "view")
    found: Any = registry.find(SINKS, plugin.name, where=KEY, has=roles)
    return make(found, plugin.name, plugin.options, title=f"sink {plugin.name}", where=KEY)
