"""A dialogue from any chat template that is append-only: what a template adds for new messages, and no more.

    text of (a probe conversation + new messages) minus text of the probe conversation

The sampled history is not part of it, so no sampled token is ever rendered. check.py tests that the template
is append-only.
"""

import re
from collections.abc import Sequence
from typing import Any

from hybridrl.data.tokenize import ModelTokenizer
from hybridrl.dialogue.calls import CallFormat, format_of, no_call_format, probe_call
from hybridrl.dialogue.safe_text import SafeText
from hybridrl.environments.base import Message, ToolSchema, Turn
from hybridrl.errors import ConfigError, DataError
from hybridrl.types import Finish

PROBE = "probe answer"
_USER: Message = {"role": "user", "content": "probe question"}
_THINKING = re.compile(r"^\s*<think>(.*?)(?:</think>|$)", re.DOTALL)


class TemplateDialogue:
    """Implements Dialogue over the tokenizer's chat template."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        """
        Raises:
            ConfigError: the template does not show an answer as it is, or ends none with a single token.
            DataError: the template fails.
        """
        self._tokenizer = tokenizer
        self._special, self._safe = frozenset(tokenizer.hf.all_special_tokens), SafeText(tokenizer)
        whole = self._render([_USER, _answer()], (), open_ended=False)
        if PROBE not in whole:
            raise _unfit("it does not show an answer as it is")
        self._closing_text = whole[whole.rindex(PROBE) + len(PROBE) :]
        self._closing = self._encode(self._closing_text)
        """What follows an answer before the next message."""

        if not self._closing:
            raise _unfit("it writes nothing after an answer, so nothing ends a turn")
        self.stop_token_ids = tuple(sorted({*tokenizer.stop_token_ids, self._closing[0]}))
        self.calls = self._call_format()
        """The form of calls of tools; None: the template has none that is understood."""

    def begin(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        if tools and self.calls is None:
            raise no_call_format("the chat template writes calls of tools in no form that can be read")
        return self._encode(self._render(messages, tools))

    def more(
        self,
        history: Sequence[int],
        answer: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
    ) -> list[int]:
        closed = bool(answer) and answer[-1] in self.stop_token_ids
        return self._closing[closed:] + self._encode(self._added(messages, tools))

    def write(self, message: Message, tools: Sequence[ToolSchema]) -> list[int]:
        before = self._render([_USER], tools)
        after = self._render(
            [_USER, {**message, "content": message.get("content") or ""}], tools, open_ended=False
        )
        if not after.startswith(before):
            raise _unfit("it writes earlier messages anew when others follow", before, after)
        return up_to_stop(self._encode(after[len(before) :]), self.stop_token_ids)

    def read(self, answer: Sequence[int], finish: Finish, tools: Sequence[ToolSchema]) -> Turn:
        ids = list(answer[:-1] if answer and answer[-1] in self.stop_token_ids else answer)
        text = self._tokenizer.hf.decode(ids, skip_special_tokens=not tools)
        assert isinstance(text, str)
        thinking = _THINKING.match(text)
        if thinking:
            text = text[thinking.end() :].lstrip("\n")
        calls = ()
        if tools and self.calls is not None:
            text, calls = self.calls.read(text)
            text = self._without_special(text)
        return Turn(text, thinking[1].strip() if thinking else "", calls, finish)

    def _added(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> str:
        """What the template adds for new messages after an answer, up to where the next one begins."""
        answer = _answer(calls=any(message.get("role") == "tool" for message in messages))
        messages = self._safe.messages(messages)
        before = self._render([_USER, answer], tools, open_ended=False)
        after = self._render([_USER, answer, *messages], tools)
        if not after.startswith(before):
            raise _unfit("it writes earlier messages anew when others follow", before, after)
        return after[len(before) :]

    def _render(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], *, open_ended: bool = True
    ) -> str:
        return self._tokenizer.render(messages, answered=not open_ended, tools=tools)

    def _encode(self, text: str) -> list[int]:
        (ids,) = self._tokenizer.encode([text], add_special_tokens=False)
        return ids

    def _call_format(self) -> CallFormat | None:
        """The form of calls, from an answer that is a call alone."""
        try:
            before = self._render([_USER], ())
            called = self._render([_USER, {**_answer(calls=True), "content": ""}], (), open_ended=False)
        except DataError:  # the template knows no calls
            return None
        return format_of(called.removeprefix(before).removesuffix(self._closing_text))

    def _without_special(self, text: str) -> str:
        for token in self._special:
            text = text.replace(token, "")
        return text


def _answer(*, calls: bool = False) -> dict[str, Any]:
    return {"role": "assistant", "content": PROBE, **({"tool_calls": [probe_call()]} if calls else {})}


def up_to_stop(ids: Sequence[int], stops: Sequence[int]) -> list[int]:
    """The tokens up to the last one that ends a turn; all of them if none does."""
    ends = [i for i, token in enumerate(ids) if token in stops]
    return list(ids[: ends[-1] + 1] if ends else ids)


def _common_prefix(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _unfit(why: str, before: str = "", after: str = "") -> ConfigError:
    at = _common_prefix(before, after)
    where = f": {before[at : at + 24]!r} becomes {after[at : at + 24]!r}" if before else ""
    return ConfigError(
        f"the chat template cannot be used for several turns, {why}{where}",
        where="data.chat_template",
        fix="a template that only appends, in the model's folder (chat_template.jinja)",
    )
