"""Transcripts as training examples: conversations with calls of tools and their results.

They are written by the dialogue that plays episodes, turn by turn, so a policy that was trained on them finds
the same tokens in its episodes. What the policy says is trained on, and nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hybridrl.config.sft_rm import SFTDataConfig
from hybridrl.data.examples import Conversations, Encoded, Example
from hybridrl.data.tables import Row
from hybridrl.data.text import holds_messages, messages_as_text, without_nulls
from hybridrl.data.tokenize import ModelTokenizer
from hybridrl.dialogue.opened import open_dialogue
from hybridrl.environments.base import Message, ToolSchema
from hybridrl.errors import ConfigError, DataError
from hybridrl.wording import json_kind

_ROLES = ("system", "user", "assistant", "tool")


class SFTExamples:
    """The format of supervised fine-tuning: plain conversations, or transcripts if data.tools_field is
    set."""

    @staticmethod
    def columns(data: SFTDataConfig) -> tuple[str, ...]:
        """The columns that every row has to have."""
        return (*Conversations.columns(data), *([data.tools_field] if data.tools_field else []))

    def __init__(self, data: SFTDataConfig, tokenizer: ModelTokenizer, where: str) -> None:
        """
        Args:
            where: the place in the config that names the data.

        Raises:
            ConfigError: the chat template cannot be used for several turns, or keys contradict each other.
        """
        plain = data.tools_field is None
        self._form = (Conversations if plain else Transcripts)(data, tokenizer, where)

    def encode(self, rows: Sequence[Row], places: Sequence[str]) -> list[Example]:
        return self._form.encode(rows, places)


class Transcripts:
    """Implements ExampleFormat for conversations with tools."""

    def __init__(self, data: SFTDataConfig, tokenizer: ModelTokenizer, where: str) -> None:
        """The arguments and errors are those of SFTExamples()."""
        if data.messages_field is None or data.chat_template == "none":
            raise ConfigError(
                "data.tools_field needs conversations in a chat template",
                where=where,
                fix="set data.messages_field, and data.chat_template: model",
            )
        self._messages, self._tools = data.messages_field, str(data.tools_field)
        self._system = data.system_prompt
        folder = tokenizer.hf.name_or_path
        self._dialogue = open_dialogue(tokenizer, folder, data, with_tools=True)

    def encode(self, rows: Sequence[Row], places: Sequence[str]) -> list[Example]:
        return [Example((self._encoded(row, place),)) for row, place in zip(rows, places, strict=True)]

    def _encoded(self, row: Row, place: str) -> Encoded:
        messages, tools = self._read(row, place)
        try:
            parts = list(self._parts(messages, tools))
        except DataError as error:
            raise DataError(f"{place}: {error.what}", where=error.where, fix=error.fix) from error
        tokens = [token for ids, _ in parts for token in ids]
        return Encoded(tokens, [trained for ids, trained in parts for _ in ids])

    def _parts(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> Iterator[tuple[list[int], bool]]:
        """(tokens, whether they are trained on), up to the last answer."""
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        stream, answer = self._dialogue.begin(messages[: answers[0]], tools), list[int]()
        yield stream, False
        for i, following in zip(answers, [*answers[1:], None], strict=True):
            answer = self._dialogue.write(messages[i], tools)
            yield answer, True
            if following is not None:
                between = self._dialogue.more(stream, answer, messages[i + 1 : following], tools)
                yield between, False
                stream = [*stream, *answer, *between]

    def _read(self, row: Row, place: str) -> tuple[list[Message], list[ToolSchema]]:
        """The messages and tools of a row.

        Raises:
            DataError: they are not as they should be.
        """
        for field in (self._messages, self._tools):
            if holds_messages(row[field]):
                raise messages_as_text(place, field)
        messages, tools = without_nulls(row[self._messages]), without_nulls(row[self._tools] or [])
        if not isinstance(messages, list) or not messages:
            raise DataError(f"{place}: the conversation is {json_kind(messages)}, not a list of messages")
        for message in messages:
            _refuse_malformed(message, place)
        if not isinstance(tools, list) or not all(_is_schema(tool) for tool in tools):
            raise DataError(
                f"{place}: {self._tools} is no list of tools in OpenAI's form: {tools!r:.80}",
                where=f"column {self._tools}",
                fix='[{"type": "function", "function": {"name": ..., "parameters": {...}}}]',
            )
        if self._system is not None:
            messages = [{"role": "system", "content": self._system}, *messages]
        first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), None)
        if first is None:
            raise DataError(f"{place}: no message of the assistant to train on")
        if first == 0:
            raise DataError(f"{place}: the conversation begins with an answer", fix="drop the row")
        return messages, tools


def _refuse_malformed(message: Any, place: str) -> None:
    role = message.get("role") if isinstance(message, Mapping) else None
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    has_text = isinstance(message, Mapping) and isinstance(message.get("content"), str)
    is_call = role == "assistant" and isinstance(calls, list) and bool(calls) and all(map(_is_call, calls))
    if role not in _ROLES or not (has_text or is_call):
        raise DataError(
            f"{place}: a message needs a role ({', '.join(_ROLES)}) and content, or calls of tools: "
            f"{message!r:.80}"
        )
    if calls and not is_call:
        raise DataError(
            f"{place}: tool_calls are not in OpenAI's form: {calls!r:.80}",
            fix='[{"type": "function", "function": {"name": ..., "arguments": {...}}}]',
        )


def _is_call(call: Any) -> bool:
    own = call.get("function") if isinstance(call, Mapping) else None
    return isinstance(own, Mapping) and isinstance(own.get("name"), str) and "arguments" in own


def _is_schema(tool: Any) -> bool:
    own = tool.get("function") if isinstance(tool, Mapping) else None
    return isinstance(own, Mapping) and isinstance(own.get("name"), str)
