"""The types that environments, dialogues and the episode runner share. It imports no other package.

An environment is a plain class, with plain or async methods, that a config names:

    class Guess:
        def __init__(self, *, highest: int = 9): ...          # its options in the config

        def reset(self, row, seed):
            self.secret = seed % (self.highest + 1)
            return Observation("Guess a digit.")

        def step(self, turn):
            if turn.text == str(self.secret):
                return Observation(reward=1.0, done=True)
            return Observation("higher" if turn.text < str(self.secret) else "lower")

A method `close(self)` is called at the end of an episode, if there is one. Methods marked with `tool` are
tools of the episode. One object plays one episode at a time; the next episode gets a new object.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from hybridrl.errors import HybridRLError
from hybridrl.types import Finish

Message = Mapping[str, Any]
"""A chat message in OpenAI's form: role (system, user, assistant or tool) and content, a string. A result of
a tool has tool_call_id and name too; an assistant's message may have tool_calls.

In a run with data.images, content may be parts in a list: {"type": "text", "text": ...} and {"type": "image",
"image": ...}, where a picture is what a row of the data may have (docs/images.md) or a picture of Pillow."""

ToolSchema = Mapping[str, Any]
"""A tool in OpenAI's form: {"type": "function", "function": {"name", "description", "parameters"}}, where
parameters is a JSON schema."""

Phase = Literal["start", "reset", "step", "close"]
"""What an environment was asked for: its process started, an episode begun, continued, or ended."""

Marked = TypeVar("Marked", bound=Callable[..., Any])

_TOOL = "__hybridrl_tool__"


def tool(method: Marked) -> Marked:
    """Mark a method of an environment as a tool that the policy may call.

    Its type hints and its docstring are the schema; what it returns is the result.
    """
    setattr(method, _TOOL, True)
    return method


def is_tool(method: Any) -> bool:
    """Whether a method is marked as a tool."""
    return bool(getattr(method, _TOOL, False))


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool that the policy wrote."""

    name: str
    """"" if it could not be read."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    """Names the call in its result; unique in the episode."""

    fault: str = ""
    """Why the call cannot be read, as "invalid JSON: ..."; "": it could be. The policy is told."""

    text: str = ""
    """The call as it was written."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the policy said in one answer."""

    text: str
    """The answer without thinking, calls and the token that ends the turn."""

    thinking: str = ""
    calls: tuple[Call, ...] = ()
    finish: Finish = "stop"
    """length: the answer was truncated at the limit of a turn."""

    agent: int = 0
    """Who said it: the agent that the observation before it named."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """One call of a tool, for metrics."""

    name: str
    seconds: float
    fault: str = ""
    """"": it gave a result. Else unknown, unreadable, arguments, exception, or timeout."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What an environment answers: to `reset` how an episode begins, to `step` what a turn led to."""

    messages: str | Sequence[Message] = ()
    """New messages, never the history. A string is one message of the user."""

    reward: float = 0.0
    """Reward of the turn that was just taken; 0 from reset."""

    done: bool = False
    """Whether the episode is over. The messages of the last observation are shown to nobody."""

    anchor: int | str | None = None
    """State in which the next turn is taken: equal states of a group are compared with each other by
    estimators that do so. None: the number of the turn."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers by name, for metrics: the mean over episodes of the sum over an episode."""

    agent: int = 0
    """Who reads these messages and takes the next turn, from 0. Only games of several agents set it."""

    rewards: Mapping[int, float] = field(default_factory=dict)
    """Rewards of other agents than the one that took the turn, added to their last turns."""

    uses: tuple[ToolUse, ...] = ()
    """Calls of tools in this step; the project fills it in."""


class Environment(Protocol):
    """What a user writes; each method may be async. `close` may be missing."""

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation | str:
        """Begin an episode.

        Args:
            row: row of the data set.
            seed: every random choice of the episode follows from it.

        Returns:
            The opening. Its messages follow those of the row's prompt; it may have none.
        """
        ...

    def step(self, turn: Turn) -> Observation | str:
        """Answer a turn of the policy."""
        ...


class EnvironmentFailedError(HybridRLError):
    """The environment of one episode failed, through no fault of the policy: its process hung, died, or
    answered what is no observation. The episode may be played again from its seeds."""

    def __init__(
        self, what: str, *, where: str = "", fix: str = "", phase: Phase = "step", reason: str = "died"
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.phase: Phase = phase
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.what, self.where, self.fix, self.phase, self.reason)


def _rebuild(what: str, where: str, fix: str, phase: Phase, reason: str) -> EnvironmentFailedError:
    return EnvironmentFailedError(what, where=where, fix=fix, phase=phase, reason=reason)


@dataclass(frozen=True, slots=True)
class EnvironmentUsage:
    """What the environments of a pool did since the last call of `usage`."""

    episodes: int = 0
    """Episodes that were opened; one that is played again counts again."""

    failures: Mapping[str, int] = field(default_factory=dict)
    """Failed episodes by "<phase>/<reason>", as step/timeout. Reasons: timeout, died, raised (an error),
    invalid (no observation), and neighbour (another episode of the process did one of these)."""

    first_failure: str = ""
    """What the first of them said."""

    closed: int = 0
    processes: int = 0
    """Processes that live now."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """Waiting time of episodes by phase."""


class OpenEpisode(Protocol):
    """The environment of one episode, as the episode runner holds it. Calls come one after the other."""

    async def reset(self, seed: int) -> Observation:
        """
        Raises:
            EnvironmentFailedError: the process could not be started, or failed, or took too long.
        """
        ...

    async def step(self, turn: Turn) -> Observation:
        """
        Raises:
            EnvironmentFailedError: the process failed, or took too long.
        """
        ...

    async def close(self) -> None:
        """End the episode, whatever state it is in. It raises nothing; a second call does nothing."""
        ...


class EnvironmentSource(Protocol):
    """Opens the environments of episodes. All calls come from one event loop."""

    async def start(self) -> None:
        """Start what episodes need, such as servers of tools; `tools` needs it.

        Raises:
            HybridRLError: it cannot be started.
        """
        ...

    def name(self, row: Mapping[str, Any]) -> str:
        """Name of the row's environment in metrics."""
        ...

    def tools(self, row: Mapping[str, Any]) -> Sequence[ToolSchema]:
        """The tools of the row's environment, for the opening of the dialogue."""
        ...

    def max_turns(self, row: Mapping[str, Any]) -> int: ...

    def open(self, row: Mapping[str, Any]) -> OpenEpisode:
        """The environment of a new episode. It waits for nothing: `reset` starts what is missing."""
        ...

    def usage(self) -> EnvironmentUsage: ...

    async def close(self) -> None:
        """End every process. A second call does nothing."""
        ...
