"""Keys about environments and tools: what the policy acts on in several turns."""

import json
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from hybridrl.config.section import PluginConfig, Section

TOOLS_ALONE = "tools"
"""Name of the environment that has tools and nothing else."""


class BoxConfig(Section):
    """A box of the sandbox for each episode, which the environment has as `self.box`; true: with these
    defaults."""

    memory_mb: PositiveInt = 512
    """MiB that a box may take."""

    disk_mb: PositiveInt = 64
    """MiB of all files in a box."""

    processes: PositiveInt = 32
    """Processes and threads that may run in a box at the same time."""

    time_s: PositiveFloat = 10.0
    """One call may take this long, unless the call says otherwise."""

    ahead: PositiveInt = 1
    """Boxes that each process of environments starts before they are needed."""

    sandbox: str = "local"
    """Place of the boxes: local is the machine of the environment; else tcp://HOST:PORT?token_file=PATH, a
    service that gives boxes."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {} if value is True else value


class OneEnvironment(PluginConfig):
    """An environment with its tools, and its options: every further key is one."""

    name: str = TOOLS_ALONE
    """File name in hybridrl.environments.kinds, or module:Class for code outside. tools: it has the tools
    below and nothing else; an answer without a call ends the episode."""

    tools: tuple[str | dict[str, Any], ...] = ()
    """Tools of the policy: module:function, {python: {timeout_s: 5}} for a Python session in a sandbox,
    {mcp: {command: [...]}} or {mcp: {url: ...}} for the tools of an MCP server, or {retrieval: {url: ...}}
    for a search server."""

    max_turns: PositiveInt = 8
    """Answers of the policy in an episode, which then ends with what it has."""

    max_result_characters: PositiveInt = 4096
    """The result of a tool is cut to this length in its middle, with a mark."""

    max_calls: PositiveInt = 16
    """Calls of tools in one turn, which run at the same time; the policy is told that others did not."""

    text_calls: dict[str, str] = {}
    """Calls that the policy writes as plain text, for a model without a format of its own: the tool, and a
    regular expression whose named groups are its arguments: {search: "<search>(?P<query>.*?)</search>"}."""

    text_result: str = "{result}"
    """What the policy reads after a call in plain text, with the result in its place."""

    box: BoxConfig | None = None

    on_bad_call: Literal["tell", "end"] = "tell"
    """What a call that cannot be made leads to. tell: the policy reads why. end: so it does, and the
    episode ends."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        # After this validator the section is Python, no longer JSON, in which a list may become a tuple.
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in dict(value).items()}
        return given | {"box": None} if given.get("box") is False else given


class EnvironmentConfig(OneEnvironment):
    """What the policy acts on in several turns, and the processes that run it."""

    field: str | None = None
    """Column of the data that names the environment of a row, one of `several`. None: all rows have this
    one."""

    several: dict[str, Any] = {}
    """Environments by the value of `field`, each with its name, options, tools and limits as above."""

    episodes_per_process: PositiveInt = 16
    """Episodes that one process plays at the same time. All of them are played again if it hangs or dies."""

    processes_per_node: PositiveInt | None = None
    """Most such processes of a node, which its engines share; further episodes wait. None: four for each of
    its CPUs."""

    nodes: NonNegativeInt = 0
    """Nodes of a running Ray, in addition to cluster.nodes, that run the environments of all engines; they
    need no GPUs. 0: environments run beside each engine."""

    start_timeout_s: PositiveFloat = 60.0
    """A process, or the server of a tool, may take this long to start."""

    reset_timeout_s: PositiveFloat = 30.0
    """The environment may take this long to begin an episode."""

    step_timeout_s: PositiveFloat = 30.0
    """The environment, or the tools of a turn, may take this long to answer."""

    close_timeout_s: PositiveFloat = 10.0
    """The environment may take this long to end an episode."""

    variables: tuple[str, ...] = ()
    """Variables of the shell that environments and tools see, besides those about folders, language and
    numbers of threads, as PATH, HOME and LANG."""

    @model_validator(mode="after")
    def _one_or_several(self) -> "EnvironmentConfig":
        if (self.field is None) != (not self.several):
            there, absent = ("several", "field") if self.several else ("field", "several")
            raise ValueError(f"{there} needs {absent}: a column names the environment of each row")
        fields = OneEnvironment.model_fields.items()
        own = [name for name, field in fields if getattr(self, name) != field.default] + [*self.options]
        if self.several and own:
            raise ValueError(f"{', '.join(own)} belongs into each environment of `several`")
        for name, given in self.several.items():
            _read(name, given)
        return self

    @property
    def all(self) -> dict[str, OneEnvironment]:
        """Every environment by its name in metrics."""
        if self.several:
            return {name: _read(name, given) for name, given in self.several.items()}
        return {self.name.rpartition(":")[2]: self}

    def place(self, name: str) -> str:
        """Key of an environment, by its name in metrics."""
        return f"environment.several.{name}" if self.several else "environment"


def _read(name: str, given: Any) -> OneEnvironment:
    """
    Raises:
        ValueError: a key of this environment has a wrong value.
    """
    try:
        return OneEnvironment.model_validate_json(json.dumps(given or {}), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, ("several", name, *problem["loc"])))
        raise ValueError(f"{place}: {problem['msg']}, not {problem['input']!r:.60}") from error
