"""A gateway on loopback whose policy says what a test says, over tokens that are characters."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hybridrl.environments.base import Call, Turn
from hybridrl.gateway.conversation import Conversations, Limits
from hybridrl.gateway.player import ProgramPlayer
from hybridrl.gateway.server import Gateway, ServerSetup, Session
from hybridrl.rollout.base import Answer
from hybridrl.rollout.turns import AskTurn
from hybridrl.types import Prompt

END = 1
"""Token that ends a turn; every other token is a character."""


class Letters:
    """A dialogue: `<role>text` for each message, `<p>` opens an answer. `!name:x` in an answer is a call."""

    stop_token_ids = (END,)

    def begin(self, messages, tools):
        text = "".join(f"<{m['role'][0]}>{m['content'] or ''}{_calls(m)}" for m in messages)
        return [*map(ord, f"{len(tools) or ''}{text}<p>")]

    def more(self, history, answer, messages, tools):
        closed = [] if answer[-1] == END else [END]
        return [*closed, *map(ord, "".join(f"<{m['role'][0]}>{m['content']}" for m in messages) + "<p>")]

    def write(self, message, tools):
        return [*map(ord, message["content"]), END]

    def read(self, answer, finish, tools):
        text = "".join(map(chr, answer[:-1] if answer[-1] == END else answer))
        thinking, _, text = text.rpartition("~")
        said, *calls = text.split("!") if tools else [text]
        return Turn(said, thinking, tuple(_call(written) for written in calls), finish)


def _calls(message):
    return "".join(f"!{c['function']['name']}" for c in message.get("tool_calls") or ())


def _call(written):
    name, colon, value = written.partition(":")
    return Call(name, {"x": value}) if colon else Call("", fault="no colon", text=f"!{written}")


@dataclass
class Policy:
    """Says what a function makes of the text so far, and notes what it was asked."""

    say: Callable[[str], str] = lambda text: f"re {text.count('<p>')}"
    asked: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    delay_s: float = 0.0
    fails: Exception | None = None

    async def ask(
        self,
        token_ids: Sequence[int],
        *,
        turn: int = 0,
        most: int | None = None,
        stop_token_ids: tuple[int, ...] = (),
        arrays: Any = None,
    ) -> Answer:
        text = shown(token_ids)
        self.asked.append(text)
        self.seeds.append(turn)
        await asyncio.sleep(self.delay_s)
        if self.fails is not None:
            raise self.fails
        tokens = [*map(ord, self.say(text)), END][:most]
        finish = "stop" if tokens[-1] == END else "length"
        logp_T = np.array([-0.01 * token for token in tokens], np.float32)
        return Answer(
            id="a",
            token_T=np.array(tokens, np.int32),
            logp_T=logp_T,
            version_T=np.full(len(tokens), 3, np.int32),
            finish=finish,
            cached_tokens=0,
        )


def shown(tokens: Iterable[int]) -> str:
    """Tokens as text, with "." for the end of a turn."""
    return "".join("." if token == END else chr(token) for token in tokens)


def conversations(policy: Policy, *, context: int = 4096, requests: int = 64) -> Conversations:
    return Conversations(Letters(), policy.ask, Limits(context, requests))


@contextlib.asynccontextmanager
async def opened(
    policy: Policy, *, setup: ServerSetup | None = None, **limits: int
) -> AsyncIterator[tuple[Gateway, Session, Conversations]]:
    running, body = limits.pop("max_running", 1024), limits.pop("max_body_bytes", 1 << 20)
    gateway = Gateway(setup or ServerSetup(max_running=running, max_body_bytes=body))
    await gateway.start()
    own = conversations(policy, **limits)
    try:
        yield gateway, gateway.open(own), own
    finally:
        await gateway.close()


async def play_all(
    gateway: Gateway,
    programs: Any,
    asks: Sequence[AskTurn],
    *,
    row: Mapping[str, Any],
    timeout_s: float,
) -> list[Any]:
    """Outcomes of episodes that a program plays at the same time, one for each policy."""
    player = ProgramPlayer(
        gateway,
        programs,
        Letters(),
        lambda row: [{"role": "user", "content": "q"}],
        Limits(4096, 8),
        timeout_s=timeout_s,
        max_sessions=512,
    )
    prompt = Prompt("train/0", (5, 6), dict(row))
    return await asyncio.gather(*(player.play(prompt, seed, ask) for seed, ask in enumerate(asks)))


def streams(outcome: Any) -> list[str]:
    """The streams of an episode, as `shown` writes them."""
    return [shown(stream.tokens) for stream in outcome.played.streams]
