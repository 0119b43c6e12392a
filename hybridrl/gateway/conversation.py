"""The conversations of one episode: requests are matched to the token streams that earlier answers made.

A request holds a whole conversation. If it goes on from an answer as it was handed out, the stream of that
answer is continued, and no sampled token is rendered again. Everything else opens a branch, whose reason is
counted:

    new         another conversation, such as that of a second agent of the program
    rewound     it goes on from an earlier answer than the last one: the tokens up to there are shared, and
                trained on in the first branch only
    edited      an answer of the policy was changed, or written by somebody else
    compacted   it begins as an earlier one and is shorter: the history was summarised
    tools       other tools than before

The same request again gets the stored answer.
"""

import asyncio
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hybridrl.dialogue.base import Dialogue
from hybridrl.environments.base import Message
from hybridrl.errors import HybridRLError
from hybridrl.gateway.requests import Asked, Given, RefusedError, ids_of, message_key
from hybridrl.rollout.streams import TokenStream
from hybridrl.rollout.turns import AskTurn


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets of an episode."""

    max_context_tokens: int
    max_requests: int
    branches: bool = True
    """Whether a conversation that continues no last answer is answered, in a branch."""


@dataclass(slots=True)
class _Node:
    """An answer, and the stream that it is in."""

    stream: TokenStream
    start: int
    end: int
    """Its tokens in the stream."""

    is_last: bool = True
    """Whether the stream ends with it."""


@dataclass(slots=True)
class Conversations:
    """All conversations of an episode; calls come from one event loop."""

    dialogue: Dialogue
    ask: AskTurn
    limits: Limits
    streams: list[TokenStream] = field(default_factory=list)
    """In the order in which they began; one without a turn has no answer yet."""

    branches: Counter[str] = field(default_factory=Counter)
    """How many branches were opened, by reason."""

    repeated: int = 0
    """Requests that got a stored answer."""

    fail: Callable[[BaseException], None] = lambda error: None
    """Gets what the engine raised: the episode cannot go on."""

    last: TokenStream | None = None
    """The stream of the newest answer."""

    _nodes: dict[str, _Node] = field(default_factory=dict)
    """Hash of a conversation up to and including an answer -> that answer."""

    _answers: dict[str, "asyncio.Task[Given]"] = field(default_factory=dict)
    """Key of a request -> its answer, or the work on it."""

    _known: list[tuple[str, list[str]]] = field(default_factory=list)
    """(tools, messages) of each conversation that opened a stream, as keys; for the reasons of branches."""

    async def answer(self, asked: Asked) -> Given:
        """Answer a request.

        Raises:
            RefusedError: it cannot be answered.
            HybridRLError: the engine failed.
        """
        key = asked.key
        task = self._answers.get(key)
        if task is not None and not _has_failed(task):
            self.repeated += 1
        else:
            if len(self._answers) >= self.limits.max_requests:
                raise RefusedError(
                    f"the episode has used its program.max_requests = {self.limits.max_requests}",
                    status=403,
                    code="max_requests",
                )
            task = self._answers[key] = asyncio.create_task(self._sample(asked, key))
            task.add_done_callback(self._note_failure)
        # A client that hangs up does not end the work: its repetition gets the answer.
        return await asyncio.shield(task)

    async def settle(self) -> None:
        """Wait for all answers that are being sampled."""
        await asyncio.gather(*self._answers.values(), return_exceptions=True)

    def _note_failure(self, task: "asyncio.Task[Given]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, RefusedError):
            self.fail(error)

    def cancel(self) -> None:
        """End the work on answers that nobody waits for any more."""
        for task in self._answers.values():
            task.cancel()

    @property
    def num_waiting(self) -> int:
        """Requests whose answers are being sampled."""
        return sum(not task.done() for task in self._answers.values())

    @property
    def num_answers(self) -> int:
        return sum(len(stream.turns) for stream in self.streams)

    async def _sample(self, asked: Asked, key: str) -> Given:
        stream, stops = self._stream_of(asked), self.dialogue.stop_token_ids
        most = self.limits.max_context_tokens - len(stream.tokens)
        if asked.max_tokens is not None:
            most = min(most, asked.max_tokens)
        prompt, number = len(stream.tokens), len(stream.turns)
        seed = zlib.crc32(key.encode())  # not the order of arrival, which differs between runs
        answer = await self.ask(tuple(stream.tokens), turn=1 + seed, most=most, stop_token_ids=stops)
        stream.act(answer, number)
        self.last = stream
        turn = self.dialogue.read(answer.token_T.tolist(), answer.finish, asked.tools)
        readable = ids_of(key, [call for call in turn.calls if not call.fault])
        broken = [call.text for call in turn.calls if call.fault]
        text = "\n".join(filter(None, (turn.text, *broken)))
        cached = answer.cached_tokens or 0
        given = Given(key, turn, readable, text, prompt, len(answer.token_T), cached)
        again = Asked([*asked.messages, given.message], asked.tools)
        self._nodes.setdefault(again.path[-1], _Node(stream, prompt, len(stream.tokens)))
        return given

    def _stream_of(self, asked: Asked) -> TokenStream:
        """The stream that a request continues, with everything before its answer.

        Raises:
            RefusedError: that is longer than the context, or the chat format cannot write it.
        """
        path, messages = asked.path, asked.messages
        at = next((i for i in range(len(messages), 0, -1) if path[i] in self._nodes), 0)
        if at == len(messages):
            raise RefusedError("the conversation ends with an answer of the policy: add a message to it")
        node = self._nodes.get(path[at])
        try:
            if node is None or any(m["role"] == "assistant" for m in messages[at:]):
                return self._begun(asked)
            return self._continued(node, asked, messages[at:])
        except HybridRLError as error:
            raise RefusedError(str(error)) from error

    def _begun(self, asked: Asked) -> TokenStream:
        """A stream of its own, for a conversation that continues no answer."""
        tokens = self.dialogue.begin(asked.messages, asked.tools)
        if not tokens:
            raise RefusedError("the conversation has no token, and an answer would continue nothing")
        self._fit(tokens)
        known = asked.path[0], [message_key(message) for message in asked.messages]
        if self.streams:
            self._open_branch(_reason(known, self._known))
        self._known.append(known)
        stream = TokenStream(tokens=list(tokens))
        self.streams.append(stream)
        return stream

    def _continued(self, node: _Node, asked: Asked, new: Sequence[Message]) -> TokenStream:
        stream, history = node.stream, node.stream.tokens[: node.start]
        answer = node.stream.tokens[node.start : node.end]
        between = self.dialogue.more(history, answer, new, asked.tools)
        self._fit([*history, *answer, *between])
        known = asked.path[0], [message_key(message) for message in asked.messages]
        if not node.is_last:
            self._open_branch("rewound")
            self._known.append(known)
            stream = TokenStream(tokens=[*history, *answer])
            self.streams.append(stream)
        else:
            self._known = [k for k in self._known if k[0] != known[0] or k[1] != known[1][: len(k[1])]]
            self._known.append(known)
        node.is_last = False
        stream.observe(between)
        return stream

    def _open_branch(self, reason: str) -> None:
        """
        Raises:
            RefusedError: this episode has one conversation only.
        """
        if not self.limits.branches:
            raise RefusedError(
                f"the conversation does not go on from the last answer as it was handed out ({reason}), and "
                "program.branches = refuse",
                code="branch",
            )
        self.branches[reason] += 1

    def _fit(self, tokens: Sequence[int]) -> None:
        if len(tokens) >= self.limits.max_context_tokens:
            raise RefusedError(
                f"the conversation has {len(tokens)} tokens, and rollout.max_context_tokens = "
                f"{self.limits.max_context_tokens} leaves no room for an answer",
                code="context_length_exceeded",
            )


def _has_failed(task: "asyncio.Task[Given]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _reason(new: tuple[str, list[str]], known: Sequence[tuple[str, list[str]]]) -> str:
    """Why a conversation continues none of those that are known: compared with the nearest one."""
    tools, messages = new
    nearest = max(known, key=lambda one: _common(messages, one[1]))
    common = _common(messages, nearest[1])
    if not common:
        return "new"
    if tools != nearest[0]:
        return "tools"
    return "compacted" if len(messages) < len(nearest[1]) else "edited"


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
