"""Chat completions in OpenAI's form: requests, responses, and responses as a stream of events."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hybridrl.environments.base import Message
from hybridrl.gateway.requests import Asked, Given, RefusedError

_SAMPLING = (
    "trained tokens are sampled from the policy itself, at the temperature of the run; see docs/gateway.md"
)
_REFUSED = {
    "n": (1, "one answer for a request: send several that differ in `seed`"),
    "best_of": (1, "one answer for a request: send several that differ in `seed`"),
    "logit_bias": ({}, _SAMPLING),
    "response_format": ({"type": "text"}, f"no grammar: {_SAMPLING}"),
    "guided_json": (None, f"no grammar: {_SAMPLING}"),
    "guided_regex": (None, f"no grammar: {_SAMPLING}"),
    "guided_grammar": (None, f"no grammar: {_SAMPLING}"),
    "structured_outputs": (None, f"no grammar: {_SAMPLING}"),
    "frequency_penalty": (0, _SAMPLING),
    "presence_penalty": (0, _SAMPLING),
    "stop": ([], "rollout.stop has the texts that end an answer"),
    "logprobs": (False, "the run keeps the log-probabilities"),
    "functions": ([], "use `tools`"),
    "audio": (None, "texts only"),
}
"""Parameters that are refused unless they have this value -> why, or what to do."""

_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_FINISHES = {"stop": "stop", "length": "length", "abort": "length"}


def read_request(body: Mapping[str, Any]) -> Asked:
    """
    Raises:
        RefusedError: it is malformed, or asks for what trained tokens cannot have.
    """
    for name, (allowed, why) in _REFUSED.items():
        if body.get(name) not in (None, allowed):
            raise RefusedError(f"{name} = {json.dumps(body[name])[:80]} is not supported: {why}")
    choice = body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise RefusedError(f"tool_choice = {json.dumps(choice)[:80]} would need a grammar: {_SAMPLING}")
    tools = body.get("tools") or []
    if not isinstance(tools, list) or not all(map(_is_tool, tools)):
        raise RefusedError("tools is no list of functions in OpenAI's form")
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    return Asked(
        read_messages(body.get("messages")),
        tools if choice != "none" else [],
        positive("max_tokens", most),
        whole("seed", body.get("seed")),
    )


def read_messages(messages: Any) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise RefusedError("messages is no list of messages, or empty")
    return [_message(message, i) for i, message in enumerate(messages)]


def whole(name: str, value: Any) -> int | None:
    if value is not None and type(value) is not int:
        raise RefusedError(f"{name} = {value!r:.40} is no whole number")
    return value


def positive(name: str, value: Any) -> int | None:
    if whole(name, value) is not None and value < 1:
        raise RefusedError(f"{name} = {value} is below 1")
    return value


def response(given: Given, model: str) -> dict[str, Any]:
    choice = {"index": 0, "message": given.message, "finish_reason": _finish(given), "logprobs": None}
    return {**_head(given, model, "chat.completion"), "choices": [choice], "usage": _usage(given)}


def events(given: Given, model: str, options: Mapping[str, Any]) -> Iterator[str]:
    """The response as server-sent events.

    Args:
        options: `stream_options` of the request.
    """
    head, message = _head(given, model, "chat.completion.chunk"), given.message
    calls = [{**call, "index": i} for i, call in enumerate(message.pop("tool_calls", []))]
    deltas: list[tuple[Any, str | None]] = [
        (message, None),
        *(({"tool_calls": [call]}, None) for call in calls),
        ({}, _finish(given)),
    ]
    for delta, finish in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        yield _event({**head, "choices": [choice]})
    if options.get("include_usage"):
        yield _event({**head, "choices": [], "usage": _usage(given)})
    yield "data: [DONE]\n\n"


def failure(error: RefusedError) -> dict[str, Any]:
    kind = "invalid_request_error" if error.status < 500 else "api_error"
    return {"error": {"message": str(error), "type": kind, "param": None, "code": error.code}}


def models(model: str) -> dict[str, Any]:
    return {"object": "list", "data": [one_model(model)]}


def one_model(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 0, "owned_by": "hybridrl"}


def _message(message: Any, number: int) -> Message:
    role = _ROLES.get(message.get("role", "")) if isinstance(message, dict) else None
    if role is None:
        raise RefusedError(f"messages[{number}] has no role among {', '.join(_ROLES)}")
    found: dict[str, Any] = {"role": role, "content": text_of(message.get("content"), number)}
    if role == "tool":
        found["tool_call_id"] = str(message.get("tool_call_id", ""))
    if message.get("name"):
        found["name"] = message["name"]
    calls = message.get("tool_calls")
    if role == "assistant" and calls:
        if not isinstance(calls, list) or not all(map(_is_call, calls)):
            raise RefusedError(f"messages[{number}].tool_calls are not in OpenAI's form")
        found["tool_calls"] = [
            {"id": call.get("id"), "type": "function", "function": dict(call["function"])} for call in calls
        ]
    return found


def text_of(content: Any, number: int) -> str:
    """The text of a message's content, which may be a list of parts.

    Raises:
        RefusedError: it has a part that is no text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    parts: Sequence[Any] = content if isinstance(content, list) else [content]
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise RefusedError(f"messages[{number}] has content that is no text, which the policy cannot read")
    return "".join(part["text"] for part in parts)


def _is_tool(tool: Any) -> bool:
    own = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(own, dict) and isinstance(own.get("name"), str)


def _is_call(call: Any) -> bool:
    own = call.get("function") if isinstance(call, dict) else None
    return (
        isinstance(own, dict) and isinstance(own.get("name"), str) and isinstance(own.get("arguments"), str)
    )


def _head(given: Given, model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{given.id}", "object": kind, "created": int(time.time()), "model": model}


def _finish(given: Given) -> str:
    return "tool_calls" if given.calls else _FINISHES[given.turn.finish]


def _usage(given: Given) -> dict[str, Any]:
    return {
        "prompt_tokens": given.prompt_tokens,
        "completion_tokens": given.answer_tokens,
        "total_tokens": given.prompt_tokens + given.answer_tokens,
        "prompt_tokens_details": {"cached_tokens": given.cached_tokens},
    }


def _event(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
