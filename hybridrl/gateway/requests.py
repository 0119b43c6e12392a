"""What a program asks of the policy, in the form that every interface is translated to."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridrl.environments.base import Call, Message, ToolSchema, Turn


class RefusedError(Exception):
    """A request that is not answered; the text says why, and what to do."""

    def __init__(self, text: str, *, status: int = 400, code: str = "invalid_request") -> None:
        super().__init__(text)
        self.status, self.code = status, code


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for the next answer of a conversation."""

    messages: Sequence[Message]
    """The whole conversation in OpenAI's form, contents as texts; the last one is not the policy's."""

    tools: Sequence[ToolSchema] = ()
    max_tokens: int | None = None
    seed: int | None = None
    """A number of the client's choice. Requests that differ in it alone are answered independently."""

    @property
    def key(self) -> str:
        """Equal for a request and its repetition."""
        return hashed(self.path[-1], json.dumps([self.max_tokens, self.seed]))

    @property
    def path(self) -> list[str]:
        """A hash of every beginning of the conversation, the tools included; one more than messages."""
        found = [hashed("", json.dumps(list(self.tools), sort_keys=True, default=str))]
        for message in self.messages:
            found.append(hashed(found[-1], message_key(message)))
        return found


@dataclass(frozen=True, slots=True)
class Given:
    """An answer of the policy, as it is handed out."""

    id: str
    turn: Turn
    calls: tuple[Call, ...]
    """Calls that could be read, each with an id."""

    text: str
    """The answer without thinking and without these calls."""

    prompt_tokens: int
    answer_tokens: int
    cached_tokens: int = 0

    @property
    def message(self) -> dict[str, Any]:
        """It as a message in OpenAI's form."""
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(dict(call.arguments), ensure_ascii=False),
                },
            }
            for call in self.calls
        ]
        thinking = {"reasoning_content": self.turn.thinking} if self.turn.thinking else {}
        message = {"role": "assistant", "content": self.text or (None if calls else ""), **thinking}
        return {**message, "tool_calls": calls} if calls else message


def hashed(before: str, text: str) -> str:
    return hashlib.blake2b(f"{before}\n{text}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def message_key(message: Message) -> str:
    """What has to be equal for two messages to be the same: role, text, calls, and the call that a result is
    of. Thinking that a client drops or keeps makes no difference."""
    calls = [
        [call.get("id"), call["function"]["name"], call["function"].get("arguments")]
        for call in message.get("tool_calls") or ()
    ]
    return json.dumps([message["role"], message.get("content") or "", calls, message.get("tool_call_id")])


def ids_of(request: str, calls: Sequence[Call]) -> tuple[Call, ...]:
    """The calls with ids that are unique in an episode.

    Args:
        request: key of the request that they answer.
    """
    return tuple(
        Call(call.name, call.arguments, f"call_{request[:12]}_{i}", call.fault, call.text)
        for i, call in enumerate(calls)
    )


def read_object(body: bytes) -> Mapping[str, Any]:
    """
    Raises:
        RefusedError: the body is no JSON object.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise RefusedError("the body is no JSON object")
    return found
