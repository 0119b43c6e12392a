"""A dialogue without a chat template: the contents of the messages, one after the other."""

from collections.abc import Sequence
from typing import Any

from hybridrl.data.tokenize import ModelTokenizer
from hybridrl.dialogue.calls import no_call_format
from hybridrl.dialogue.safe_text import SafeText
from hybridrl.environments.base import Message, ToolSchema, Turn
from hybridrl.types import Finish


class PlainDialogue:
    """Implements Dialogue for data.chat_template: none. It has no form for calls of tools."""

    def __init__(self, tokenizer: ModelTokenizer, picture: str = "") -> None:
        """
        Args:
            picture: what stands for a picture; "": the model reads text only.
        """
        self._tokenizer, self._safe, self._picture = tokenizer, SafeText(tokenizer), picture
        self.stop_token_ids = tokenizer.stop_token_ids

    def begin(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        if tools:
            raise no_call_format("data.chat_template = none has no format for calls of tools")
        return self._encoded(messages, add_special_tokens=True)

    def more(
        self,
        history: Sequence[int],
        answer: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
    ) -> list[int]:
        closed = bool(answer) and answer[-1] in self.stop_token_ids
        closing = [] if closed else list(self.stop_token_ids[:1])
        return closing + self._encoded(self._safe.messages(messages), add_special_tokens=False)

    def write(self, message: Message, tools: Sequence[ToolSchema]) -> list[int]:
        return [*self._encoded([message], add_special_tokens=False), *self.stop_token_ids[:1]]

    def read(self, answer: Sequence[int], finish: Finish, tools: Sequence[ToolSchema]) -> Turn:
        (text,) = self._tokenizer.decode_answers([answer])
        return Turn(text, finish=finish)

    def _encoded(self, messages: Sequence[Message], *, add_special_tokens: bool) -> list[int]:
        text = "".join(self._text(message.get("content") or "") for message in messages)
        (ids,) = self._tokenizer.encode([text], add_special_tokens=add_special_tokens)
        return ids

    def _text(self, content: Any) -> str:
        parts = content if isinstance(content, list) else [{"text": str(content)}]
        return "".join(part.get("text", self._picture) for part in parts)
