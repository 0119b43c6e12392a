"""What a dialogue does. Implementations: plain.py, template.py and rendered.py.

A dialogue never sees an answer of the policy as text again: `more` returns what follows the sampled tokens.
"""

from collections.abc import Sequence
from typing import Protocol

from hybridrl.environments.base import Message, ToolSchema, Turn
from hybridrl.types import Finish


class Dialogue(Protocol):
    """A chat format. It has no state, so all episodes of a process share one."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a turn, ascending."""
        ...

    def begin(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """The conversation up to where the first answer begins.

        Raises:
            DataError: the chat format cannot write the messages.
            ConfigError: there are tools, and it has no format for calls.
        """
        ...

    def more(
        self,
        history: Sequence[int],
        answer: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
    ) -> list[int]:
        """What follows an answer, up to where the next answer begins.

        If the answer was truncated, this starts with the token that ends a turn.

        Args:
            history: everything before the answer.
            answer: the sampled tokens.
            messages: new messages, of a user, a tool or the system.

        Raises:
            DataError: the chat format cannot write the messages.
        """
        ...

    def write(self, message: Message, tools: Sequence[ToolSchema]) -> list[int]:
        """An assistant's message as the policy would sample it, up to the token that ends it.

        Raises:
            DataError: the chat format cannot write the message.
        """
        ...

    def read(self, answer: Sequence[int], finish: Finish, tools: Sequence[ToolSchema]) -> Turn:
        """The answer as text, thinking and calls of tools. Nothing in an answer is an error."""
        ...
