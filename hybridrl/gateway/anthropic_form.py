"""Messages in Anthropic's form, translated to and from OpenAI's."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from hybridrl.environments.base import Message, ToolSchema
from hybridrl.gateway.openai_form import positive, text_of
from hybridrl.gateway.requests import Asked, Given, RefusedError

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def read_request(body: Mapping[str, Any]) -> Asked:
    """
    Raises:
        RefusedError: it is malformed, or asks for what trained tokens cannot have.
    """
    choice = body.get("tool_choice") or {"type": "auto"}
    if not isinstance(choice, dict) or choice.get("type") not in ("auto", "none"):
        raise RefusedError("tool_choice other than auto and none would need a grammar, which changes tokens")
    for name in ("stop_sequences", "output_format", "output_config"):
        if body.get(name):
            raise RefusedError(f"{name} is not supported: it would change which tokens are sampled")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusedError("messages is no list of messages, or empty")
    found = [one for i, message in enumerate(messages) for one in _messages(message, i)]
    system = text_of(body.get("system"), 0)
    if system:
        found = [{"role": "system", "content": system}, *found]
    tools = body.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(t, dict) and "input_schema" in t for t in tools):
        raise RefusedError("tools is no list of tools with a name and an input_schema")
    used = [] if choice["type"] == "none" else [_tool(tool) for tool in tools]
    return Asked(found, used, positive("max_tokens", body.get("max_tokens")))


def response(given: Given, model: str) -> dict[str, Any]:
    return {**_head(given, model), "content": _blocks(given), **_end(given), "usage": _usage(given)}


def events(given: Given, model: str) -> Iterator[str]:
    """The response as server-sent events."""
    opened = {**_head(given, model), "content": [], "stop_reason": None, "stop_sequence": None}
    yield _event("message_start", message={**opened, "usage": {**_usage(given), "output_tokens": 0}})
    for index, block in enumerate(_blocks(given)):
        empty, delta = _opened(block)
        yield _event("content_block_start", index=index, content_block=empty)
        yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    yield _event("message_delta", delta=_end(given), usage={"output_tokens": given.answer_tokens})
    yield _event("message_stop")


def failure(error: RefusedError) -> dict[str, Any]:
    return {"type": "error", "error": {"type": _KINDS.get(error.status, "api_error"), "message": str(error)}}


def _messages(message: Any, number: int) -> list[Message]:
    """A message as one or more of OpenAI's: results of tools are messages of their own there."""
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ("user", "assistant", "system"):
        raise RefusedError(f"messages[{number}] has no role among user and assistant")
    content = message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise RefusedError(f"messages[{number}].content is neither a text nor a list of blocks")
    kinds = {"text", "tool_use", "tool_result", "thinking", "redacted_thinking"}
    if unknown := {str(block.get("type")) for block in blocks} - kinds:
        raise RefusedError(
            f"messages[{number}] has {', '.join(sorted(unknown))}, which the policy cannot read"
        )
    results: list[Message] = [
        {
            "role": "tool",
            "tool_call_id": str(block.get("tool_use_id", "")),
            "content": text_of(block.get("content"), number),
        }
        for block in blocks
        if block["type"] == "tool_result"
    ]
    calls = [_call(block, number) for block in blocks if block["type"] == "tool_use"]
    text = text_of([block for block in blocks if block["type"] == "text"], number)
    own: dict[str, Any] = {"role": role, "content": text, **({"tool_calls": calls} if calls else {})}
    return [*results, *([own] if text or calls or not results else [])]


def _call(block: Mapping[str, Any], number: int) -> dict[str, Any]:
    if not isinstance(block.get("name"), str) or not isinstance(block.get("input"), dict):
        raise RefusedError(f"messages[{number}] has a tool_use without a name or an input")
    function = {"name": block["name"], "arguments": json.dumps(block["input"], ensure_ascii=False)}
    return {"id": block.get("id"), "type": "function", "function": function}


def _tool(tool: Mapping[str, Any]) -> ToolSchema:
    function = {
        "name": str(tool.get("name", "")),
        "description": str(tool.get("description", "")),
        "parameters": tool["input_schema"],
    }
    return {"type": "function", "function": function}


def _blocks(given: Given) -> list[dict[str, Any]]:
    thinking = given.turn.thinking
    text = given.text or given.calls
    return [
        *([{"type": "thinking", "thinking": thinking, "signature": ""}] if thinking else []),
        *([{"type": "text", "text": given.text}] if given.text or not text else []),
        *(
            {"type": "tool_use", "id": call.id, "name": call.name, "input": dict(call.arguments)}
            for call in given.calls
        ),
    ]


def _opened(block: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A block as a stream begins it, and what is added to it."""
    match block["type"]:
        case "text":
            return {"type": "text", "text": ""}, {"type": "text_delta", "text": block["text"]}
        case "thinking":
            added = {"type": "thinking_delta", "thinking": block["thinking"]}
            return {"type": "thinking", "thinking": "", "signature": ""}, added
    whole = json.dumps(block["input"], ensure_ascii=False)
    return {**block, "input": {}}, {"type": "input_json_delta", "partial_json": whole}


def _head(given: Given, model: str) -> dict[str, Any]:
    return {"id": f"msg_{given.id}", "type": "message", "role": "assistant", "model": model}


def _end(given: Given) -> dict[str, Any]:
    reason = "tool_use" if given.calls else "end_turn" if given.turn.finish == "stop" else "max_tokens"
    return {"stop_reason": reason, "stop_sequence": None}


def _usage(given: Given) -> dict[str, int]:
    return {
        "input_tokens": given.prompt_tokens - given.cached_tokens,
        "cache_read_input_tokens": given.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": given.answer_tokens,
    }


def _event(kind: str, **data: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"
