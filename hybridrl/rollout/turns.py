"""Plays episodes of several turns: the policy answers, the environment answers back, and so on.

    opening -> [ask the engine -> read the turn -> step the environment -> append its messages] ...

An episode ends when its environment says so, or when a budget is used up: tokens of an answer, tokens of the
context, or the number of turns. It ends with what it has; no budget ends a run.

Waits: an episode waits for the engine, and for its environment, which has deadlines of its own.
"""

import contextlib
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from hybridrl.columns import PIXELS, SIZES
from hybridrl.dialogue.base import Dialogue
from hybridrl.dialogue.pictures import Decoded, PictureMessages
from hybridrl.environments.base import (
    EnvironmentFailedError,
    EnvironmentSource,
    Message,
    Observation,
    OpenEpisode,
    ToolSchema,
)
from hybridrl.errors import DataError
from hybridrl.models.pictures import pictures_of
from hybridrl.rollout.base import Answer
from hybridrl.rollout.streams import Played, StreamTurn, TokenStream
from hybridrl.types import Ended, Finish, Prompt

Sums = defaultdict[str, float]
"""Numbers that are added up, by name."""

MOST_ATTEMPTS = 3
"""How often an episode whose environment fails is played, with the same seeds."""


class AskTurn(Protocol):
    """Asks the engine to continue some tokens."""

    async def __call__(
        self,
        token_ids: Sequence[int],
        *,
        turn: int = 0,
        most: int | None = None,
        stop_token_ids: tuple[int, ...] = (),
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> Answer:
        """
        Args:
            turn: number of the answer in its episode; the seed depends on it.
            most: most tokens of the answer; None: as the task says. A task never allows more than it says.
            stop_token_ids: tokens that end this answer, in addition to those of the task.
            arrays: the pictures that the tokens show; None: those of the prompt.
        """
        ...


@dataclass(frozen=True, slots=True)
class FrozenPlayer:
    """A model that plays a role in the policy's place; what it says is not trained on."""

    dialogue: Dialogue
    ask: AskTurn
    """Its `turn` is the seed of the answer: a frozen player is a part of the world, whose seed all samples of
    a prompt share."""


@dataclass(slots=True)
class Outcome:
    """What became of an episode, with what was counted on the way."""

    played: Played
    sums: Sums = field(default_factory=lambda: defaultdict(float))
    """Numbers by name, to be added up over episodes."""

    lost_tokens: int = 0
    """Tokens sampled in attempts whose environment failed."""

    failure: str = ""
    """Why its environment failed in the last attempt; "": it did not."""

    overdue: str = ""
    """What its program was doing when the episode ended at its deadline; "": it did not."""

    reported: dict[str, float] = field(default_factory=dict)
    """Metrics of the environment, summed over the episode."""


class Player(Protocol):
    """Plays the episodes of one engine."""

    async def play(self, prompt: Prompt, seed: int, ask: AskTurn, *, heldout: bool = False) -> Outcome:
        """
        Args:
            seed: seed of the episode's world.
        """
        ...


@dataclass(slots=True)
class _Attempt:
    """One episode in progress."""

    prompt: Prompt
    tools: Sequence[ToolSchema]
    max_turns: int
    frozen: Container[int] = ()
    """Roles that the policy does not play."""

    streams: dict[int, TokenStream] = field(default_factory=dict)
    sums: Sums = field(default_factory=lambda: defaultdict(float))
    reported: Sums = field(default_factory=lambda: defaultdict(float))
    finish: Finish = "stop"

    @property
    def trained(self) -> tuple[TokenStream, ...]:
        """The streams of the roles that the policy plays."""
        return tuple(stream for agent, stream in self.streams.items() if agent not in self.frozen)

    @property
    def turns(self) -> list[StreamTurn]:
        """The turns of the policy."""
        return [turn for stream in self.trained for turn in stream.turns]

    def end(self, ended: Ended) -> Played:
        streams = self.trained or (TokenStream(tokens=list(self.prompt.token_ids[:1])),)
        out_of_budget = ended != "done" or self.finish == "length"
        return Played(streams, ended, "length" if out_of_budget else "stop")


class TurnPlayer:
    """Plays the episodes of one engine."""

    def __init__(
        self,
        environments: EnvironmentSource,
        dialogue: Dialogue,
        opening: Callable[[Mapping[str, Any]], Sequence[Message]],
        *,
        max_context_tokens: int,
        heldout_turns: int | None = None,
        marks_observations: bool = False,
        frozen: Mapping[int, FrozenPlayer] | None = None,
        pictures: PictureMessages | None = None,
    ) -> None:
        """
        Args:
            opening: messages of a row's prompt, which open its dialogue.
            max_context_tokens: most tokens of one stream.
            heldout_turns: most turns of a held-out episode. None: as many as its environment says.
            marks_observations: column observed says which tokens the environment wrote; otherwise it is
                False everywhere.
            frozen: role -> who plays it in the policy's place.
            pictures: reads those of messages; None: the run has none.
        """
        self._pictures = pictures
        self._frozen = frozen or {}
        self._marks_observations = marks_observations
        self._environments, self._dialogue, self._opening = environments, dialogue, opening
        self._most, self._heldout_turns = max_context_tokens, heldout_turns

    async def play(self, prompt: Prompt, seed: int, ask: AskTurn, *, heldout: bool = False) -> Outcome:
        """Play an episode; if its environment fails, again from its seeds.

        Args:
            seed: seed of the environment.
        """
        outcome = Outcome(_failed(prompt))
        for _ in range(MOST_ATTEMPTS):
            attempt = self._attempt(prompt, self._heldout_turns if heldout else None)
            try:
                outcome.played = await self._play(attempt, seed, ask)
                outcome.failure = ""
                self._sum_up(attempt)
                for name, value in attempt.sums.items():
                    outcome.sums[name] += value
                outcome.reported = dict(attempt.reported)
                return outcome
            except EnvironmentFailedError as error:
                outcome.failure = str(error)
                outcome.lost_tokens += sum(len(stream.version_U) for stream in attempt.trained)
                outcome.sums["episodes/retried"] += 1
        return outcome

    def _attempt(self, prompt: Prompt, most_turns: int | None) -> _Attempt:
        environments, row = self._environments, prompt.row
        turns = environments.max_turns(row) if most_turns is None else most_turns
        attempt = _Attempt(prompt, environments.tools(row), turns, self._frozen)
        attempt.sums[f"environment/{environments.name(row)}/episodes"] += 1
        return attempt

    async def _play(self, attempt: _Attempt, seed: int, ask: AskTurn) -> Played:
        async with self._opened(attempt.prompt.row) as environment:
            seen = await environment.reset(seed)
            for number in range(attempt.max_turns):
                self._note(attempt, seen)
                if seen.done:
                    return attempt.end("done")
                stream = await self._hear(attempt, seen)
                left = self._most - len(stream.tokens)
                if left <= 0:
                    return attempt.end("overflow")
                answer = await self._asked(stream, ask, number, seed)
                seen = await self._take_turn(attempt, stream, answer, seen, environment, number)
                if not seen.done and len(stream.tokens) >= self._most:
                    self._note(attempt, seen)
                    return attempt.end("max_tokens")
            self._note(attempt, seen)
            return attempt.end("done" if seen.done else "max_turns")

    @contextlib.asynccontextmanager
    async def _opened(self, row: Mapping[str, Any]) -> AsyncIterator[OpenEpisode]:
        environment = self._environments.open(row)
        try:
            yield environment
        finally:
            await environment.close()

    async def _hear(self, attempt: _Attempt, seen: Observation) -> TokenStream:
        """Append new messages to the stream of the role that takes the next turn."""
        dialogue, stream = self._dialogue_of(seen.agent), attempt.streams.get(seen.agent)
        messages, shown = await self._read(attempt.prompt, seen)
        if stream is None:
            arrays = attempt.prompt.arrays
            stream = attempt.streams[seen.agent] = TokenStream(seen.agent, of_prompt=arrays)
            messages = [*self._opening_of(attempt.prompt), *messages]
            of_prompt = pictures_of(arrays[PIXELS], arrays[SIZES]) if arrays else ()
            begun = dialogue.begin(messages, attempt.tools)
            begun = self._placed(attempt, stream, begun, [*of_prompt, *shown], len(of_prompt))
            if not begun:
                raise DataError(
                    f"the dialogue of {attempt.prompt.uid} begins without a token, and its first answer "
                    "would continue nothing",
                    fix="a prompt, or an opening message of the environment",
                )
            stream.observe(begun)
            return stream
        last = stream.turns[-1]
        history, answer = stream.tokens[: last.start], stream.tokens[last.start :]
        added = dialogue.more(history, answer, messages, attempt.tools)
        added = self._placed(attempt, stream, added, shown)
        said = range(0)
        if self._marks_observations:
            silent = [{**message, "content": ""} for message in messages]
            said = inserted(dialogue.more(history, answer, silent, attempt.tools), added)
        stream.observe(added, said)
        return stream

    async def _read(self, prompt: Prompt, seen: Observation) -> tuple[list[Message], Decoded]:
        """The messages of an observation, and the pictures in them.

        Raises:
            EnvironmentFailedError: a picture cannot be read.
            DataError: there is one, and the run has no pictures.
        """
        messages = messages_of(seen)
        if not any(_has_parts(message) for message in messages):
            return messages, ()
        name = self._environments.name(prompt.row)
        if self._pictures is None:
            raise DataError(
                f"environment {name} shows a picture, and data.images is not set",
                where="data.images",
                fix="data.images: {} for a model that reads pictures",
            )
        try:
            return await self._pictures.read(messages, f"environment {name}")
        except DataError as error:
            raise EnvironmentFailedError(error.what, where=error.where, reason="invalid") from error

    def _opening_of(self, prompt: Prompt) -> Sequence[Message]:
        messages = self._opening(prompt.row)
        if self._pictures is None:
            return messages
        return self._pictures.opening(messages, prompt.pictures, prompt.uid)

    def _placed(
        self, attempt: _Attempt, stream: TokenStream, ids: list[int], shown: Decoded, of_prompt: int = 0
    ) -> list[int]:
        """Token ids with all placeholders, which are about to be appended to a stream.

        Args:
            of_prompt: how many of the pictures are the prompt's.
        """
        if self._pictures is None:
            return ids
        found, starts = self._pictures.expanded(ids, shown, attempt.prompt.uid)
        first = len(stream.tokens)
        stream.shown += [(first + at, one) for at, one in zip(starts, shown, strict=True)][of_prompt:]
        return found

    def _dialogue_of(self, agent: int) -> Dialogue:
        return self._frozen[agent].dialogue if agent in self._frozen else self._dialogue

    async def _asked(self, stream: TokenStream, ask: AskTurn, number: int, seed: int) -> Answer:
        """
        Args:
            ask: asks the policy.
            number: number of the turn in its episode.
            seed: seed of the episode's world.
        """
        left, tokens = self._most - len(stream.tokens), tuple(stream.tokens)
        stops = self._dialogue_of(stream.agent).stop_token_ids
        if (player := self._frozen.get(stream.agent)) is not None:
            ask, number = player.ask, zlib.crc32(repr((seed, number, tokens)).encode())
        shown = {"arrays": stream.pictures(len(tokens))} if self._pictures else {}
        return await ask(tokens, turn=number, most=left, stop_token_ids=stops, **shown)

    async def _take_turn(
        self,
        attempt: _Attempt,
        stream: TokenStream,
        answer: Answer,
        seen: Observation,
        environment: OpenEpisode,
        number: int,
    ) -> Observation:
        """Let the environment answer an answer."""
        stream.act(answer, seen.anchor)
        if stream.agent not in self._frozen:
            attempt.finish = answer.finish
        dialogue = self._dialogue_of(stream.agent)
        turn = dialogue.read(answer.token_T.tolist(), answer.finish, attempt.tools)
        calls = tuple(replace(call, id=call.id or f"call_{number}_{i}") for i, call in enumerate(turn.calls))
        seen = await environment.step(replace(turn, agent=stream.agent, calls=calls))
        stream.earn(seen.reward)
        for agent, reward in seen.rewards.items():
            if agent in attempt.streams:
                attempt.streams[agent].earn(reward)
        return seen

    def _sum_up(self, attempt: _Attempt) -> None:
        """Count what an episode's turns earned; what the environment itself calls so stays as it is."""
        name, turns = self._environments.name(attempt.prompt.row), attempt.turns
        attempt.sums.setdefault(f"environment/{name}/reward", sum(turn.reward for turn in turns))
        attempt.sums.setdefault(f"environment/{name}/num_turns", len(turns))

    def _note(self, attempt: _Attempt, seen: Observation) -> None:
        """Count what an observation reports."""
        name, sums = self._environments.name(attempt.prompt.row), attempt.sums
        for metric, value in seen.metrics.items():
            sums[f"environment/{name}/{metric}"] += value
            attempt.reported[metric] += value
        for use in seen.uses:
            sums[f"tool/{use.name}/calls"] += 1
            sums[f"tool/{use.name}/seconds"] += use.seconds
            if use.fault:
                sums[f"tool/{use.name}/errors"] += 1
                sums[f"tool/{use.name}/{use.fault}"] += 1


def messages_of(seen: Observation) -> list[Message]:
    """The messages of an observation; a text is a message of the user."""
    if isinstance(seen.messages, str):
        return [{"role": "user", "content": seen.messages}]
    return list(seen.messages)


def _has_parts(message: Message) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(isinstance(part, Mapping) for part in content)


def inserted(before: Sequence[int], after: Sequence[int]) -> range:
    """Indices in `after` of what was put into `before`: all between their common start and end."""
    start = _common(before, after)
    end = _common(before[start:][::-1], after[start:][::-1])
    return range(start, len(after) - end)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of equal elements at the start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _failed(prompt: Prompt) -> Played:
    """What is left of an episode whose environment failed again and again: nothing that is trained on."""
    return Played((TokenStream(tokens=list(prompt.token_ids[:1])),), "failed", "abort")
