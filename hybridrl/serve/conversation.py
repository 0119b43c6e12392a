"""A conversation with an engine: token ids in, pieces of text out.

An answer is asked for in parts, each of which goes on where the last one ended: so its text is there while
it is made, with any kind of engine. An engine that samples by seed and place gives the tokens of one whole
answer.
"""

import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from hybridrl.data.tokenize import ModelTokenizer
from hybridrl.dialogue.base import Dialogue
from hybridrl.environments.base import Message
from hybridrl.errors import UserError
from hybridrl.report.text import clean
from hybridrl.rollout.base import Answer, Request
from hybridrl.types import Finish, Sampling

_FIRST_PART, _LONGEST_PART = 4, 32
"""Tokens of the first part of an answer, and of a later one; each is twice as long as the one before."""


class Asked(Protocol):
    """What a conversation needs of an engine."""

    async def request(self, request: Request) -> Answer: ...

    async def abort(self, ids: Sequence[str]) -> None: ...


@dataclass
class Conversation:
    engine: Asked
    dialogue: Dialogue
    tokenizer: ModelTokenizer
    sampling: Sampling
    """Options of a whole answer; the seed is that of the first one."""

    most_tokens: int
    """Tokens of the conversation, the answer included."""

    keeps: bool = True
    """Whether a message continues the conversation; False: each stands alone, as for a model without a chat
    template."""

    system: str | None = None
    """Put before the first message; a change holds from the next reset on."""

    ended: Finish = "stop"
    """Why the last answer ended."""

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self._history: list[int] = []
        self._answer: list[int] = []
        self._turn = 0

    @property
    def num_tokens(self) -> int:
        return len(self._history) + len(self._answer)

    async def say(self, text: str) -> AsyncIterator[str]:
        """Say something, and yield the answer piece by piece: plain text without control characters.

        If the caller stops early, the conversation keeps what was answered until then.

        Raises:
            UserError: the conversation is full; nothing was said.
            DataError: the chat format cannot write the message.
        """
        prompt = self._with(text)
        room = self.most_tokens - len(prompt)
        if room < 1:
            raise UserError(
                f"the conversation is full: {len(prompt):,} tokens, the model reads {self.most_tokens:,}",
                fix="/reset",
            )
        self._history, self._answer = prompt, []
        sampling = replace(self.sampling, max_response_tokens=min(room, self.sampling.max_response_tokens))
        shown = Shown()
        async for _ in self._parts(sampling):
            (whole,) = self.tokenizer.decode_answers([self._answer])
            if piece := shown.more(whole):
                yield piece
        (whole,) = self.tokenizer.decode_answers([self._answer])
        if piece := shown.rest(whole):
            yield piece
        self._turn += 1

    def _with(self, text: str) -> list[int]:
        """All tokens up to where the next answer begins."""
        said: Message = {"role": "user", "content": text}
        if not self._history or not self.keeps:
            first: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
            return self.dialogue.begin([*first, said], ())
        more = self.dialogue.more(self._history, self._answer, [said], ())
        return [*self._history, *self._answer, *more]

    async def _parts(self, sampling: Sampling) -> AsyncIterator[None]:
        """Let the answer grow, until it ends; each part is asked with all tokens before it."""
        length, most = _FIRST_PART, sampling.max_response_tokens
        self.ended = "length"
        while len(self._answer) < most:
            answer = await self._ask(sampling, min(length, most - len(self._answer)))
            self._answer += answer.token_T.tolist()
            length = min(2 * length, _LONGEST_PART)
            yield
            if answer.finish != "length" or not len(answer.token_T):
                self.ended = answer.finish
                return
            if self._answer[-1] in self.dialogue.stop_token_ids:  # the last token that the part had room for
                self.ended = "stop"
                return

    async def _ask(self, sampling: Sampling, most: int) -> Answer:
        request = Request(
            id=f"chat/{next(self._numbers)}",
            token_ids=(*self._history, *self._answer),
            sampling=replace(
                sampling,
                max_response_tokens=most,
                stop_token_ids=self.dialogue.stop_token_ids,
                seed=None if sampling.seed is None else sampling.seed + self._turn,
            ),
        )
        try:
            return await self.engine.request(request)
        except BaseException:
            await self.engine.abort([request.id])
            raise


class Shown:
    """What of a growing text was shown. The end of a text is held back as long as more may change it."""

    def __init__(self) -> None:
        self._text = ""

    def more(self, text: str) -> str:
        """What is to be shown of a text that goes on."""
        return self.rest(text.rstrip("\r\N{REPLACEMENT CHARACTER}"))

    def rest(self, text: str) -> str:
        """What is to be shown of a text that is over."""
        now = clean(text)
        if not now.startswith(self._text):
            return ""
        piece, self._text = now[len(self._text) :], now
        return piece
