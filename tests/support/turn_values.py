"""Environments whose episodes follow a script, and a dialogue whose messages are lists of tokens."""

from collections.abc import Mapping
from typing import Any

from hybridrl.environments.base import EnvironmentUsage, Observation, Turn

END = 99


class Words:
    """A dialogue whose messages are lists of tokens. A turn ends with END."""

    stop_token_ids = (END,)

    def begin(self, messages, tools):
        return [token for message in messages for token in message["content"]]

    def more(self, history, answer, messages, tools):
        return [*([] if answer[-1] == END else [END]), *self.begin(messages, tools)]

    def write(self, message, tools):
        return [*message["content"], END]

    def read(self, answer, finish, tools):
        return Turn(" ".join(map(str, answer)), finish=finish)


class World:
    """An EnvironmentSource whose episodes say what a script says; an exception in it is raised."""

    def __init__(self, *scripts, max_turns=4):
        self.scripts, self.turns, self.seeds, self.said, self.closed = list(scripts), max_turns, [], [], 0

    async def start(self) -> None: ...

    def name(self, row: Mapping[str, Any]) -> str:
        return "world"

    def tools(self, row: Mapping[str, Any]):
        return ()

    def max_turns(self, row: Mapping[str, Any]) -> int:
        return self.turns

    def open(self, row: Mapping[str, Any]):
        return Script(self, self.scripts.pop(0))

    def usage(self) -> EnvironmentUsage:
        return EnvironmentUsage()

    async def close(self) -> None: ...


class Script:
    def __init__(self, world, lines):
        self.world, self.lines = world, list(lines)

    async def reset(self, seed):
        self.world.seeds.append(seed)
        return self._next()

    async def step(self, turn):
        self.world.said.append(turn)
        return self._next()

    async def close(self):
        self.world.closed += 1

    def _next(self):
        line = self.lines.pop(0)
        if isinstance(line, Exception):
            raise line
        return line


def says(*tokens, **more):
    return Observation([{"role": "user", "content": list(tokens)}], **more)


class Talk(World):
    """Every answer is followed by `length` tokens, which depend on it, and earns 0.25."""

    def __init__(self, *, max_turns=4, length=5, vocabulary=120):
        super().__init__(max_turns=max_turns)
        self.length, self.vocabulary = length, vocabulary

    def open(self, row):
        return Talker(self)


class Talker:
    def __init__(self, world):
        self.world = world

    async def reset(self, seed):
        return says()

    async def step(self, turn):
        first = sum(map(int, turn.text.split()))
        said = [3 + (first + i) % (self.world.vocabulary - 3) for i in range(self.world.length)]
        return says(*said, reward=0.25)

    async def close(self):
        self.world.closed += 1
