"""Text that comes from outside, such as a result of a tool, made unable to end a turn or to open a role."""

from collections.abc import Sequence
from typing import Any

from hybridrl.data.tokenize import ModelTokenizer
from hybridrl.environments.base import Message

_JOINER = "\N{WORD JOINER}"
"""A character without width, put into the spelling of a special token."""


class SafeText:
    """Rewrites messages so that no special token is made of their text."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        added: Any = tokenizer.hf.added_tokens_decoder
        special = {str(token) for token in added.values()} | set(tokenizer.hf.all_special_tokens)
        self._special = sorted(filter(None, special), key=len, reverse=True)

    def messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Copies of the messages, with safe contents."""
        return [{**m, "content": self._content(m.get("content") or "")} for m in messages]

    def _content(self, content: Any) -> Any:
        """A text, or content parts: texts, and places for pictures."""
        if not isinstance(content, list):
            return self.text(str(content))
        return [{**part, "text": self.text(part["text"])} if "text" in part else part for part in content]

    def text(self, text: str) -> str:
        for token in self._special:
            if token in text:
                text = text.replace(token, token[0] + _JOINER + token[1:])
        return text
