"""Makes the calls of one turn, at the same time, and says what the policy reads of each."""

import asyncio
import difflib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridrl.environments.base import Call, Message, Observation, ToolUse
from hybridrl.environments.tools.base import LostToolError, Tool, ToolFaultError, WrongCallError

Content = str | Sequence[Any]
"""A text, or content parts of a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRules:
    """How calls are made, from the config."""

    max_calls: int
    max_result_characters: int
    timeout_s: float
    """Calls that can be cancelled are, after this time."""

    text_calls: Mapping[str, str]
    text_result: str


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of the calls of a turn."""

    messages: tuple[Message, ...]
    uses: tuple[ToolUse, ...]
    observations: tuple[Observation, ...]
    """What tools that return an Observation returned."""


def calls_in_text(text: str, patterns: Mapping[str, str]) -> tuple[Call, ...]:
    """The calls that a plain text has, in its order."""
    found: list[tuple[int, Call]] = []
    for name, pattern in patterns.items():
        for match in re.finditer(pattern, text, re.DOTALL):
            given = {key: value for key, value in match.groupdict().items() if value is not None}
            found.append((match.start(), Call(name, given, text=match[0])))
    return tuple(call for _, call in sorted(found, key=lambda item: item[0]))


async def answer(
    calls: Sequence[Call], tools: Mapping[str, Tool], rules: CallRules, *, plain: bool
) -> Answered:
    """Make the calls of a turn; what goes wrong is told to the policy.

    Args:
        plain: whether the calls were written as plain text, so that the results are too.

    Raises:
        LostToolError: what a tool runs on is gone.
    """
    results = await asyncio.gather(
        *(_result(call, tools, rules, beyond=i >= rules.max_calls) for i, call in enumerate(calls))
    )
    most = rules.max_result_characters
    messages = tuple(
        _message(call, _shortened(content, most), rules, plain)
        for call, (content, _, _) in zip(calls, results, strict=True)
    )
    uses = tuple(use for _, use, _ in results)
    return Answered(messages, uses, tuple(seen for _, _, seen in results if seen is not None))


def cut_middle(text: str, limit: int) -> str:
    """The text, or its beginning and its end with a mark between them, `limit` characters in all."""
    if len(text) <= limit:
        return text
    mark = f"\n[... {len(text) - limit} characters left out ...]\n"
    kept = max(limit - len(mark), 0)
    head = kept - kept // 2
    return (text[:head] + mark + text[len(text) - kept // 2 :])[: max(limit, len(mark))]


def _shortened(content: Content, most: int) -> Content:
    if isinstance(content, str):
        return cut_middle(content, most)
    return [_shortened_part(part, most) for part in content]


def _shortened_part(part: Any, most: int) -> Any:
    text = part.get("text") if isinstance(part, Mapping) else None
    return {**part, "text": cut_middle(text, most)} if isinstance(text, str) else part


async def _result(
    call: Call, tools: Mapping[str, Tool], rules: CallRules, *, beyond: bool
) -> tuple[Content, ToolUse, Observation | None]:
    """What the policy reads, the call in metrics, and what the tool observed."""
    began = time.monotonic()
    fault, returned = await _made(call, tools, rules, beyond=beyond)
    name = (
        call.name if call.name in tools else "unknown"
    )  # a metric for each name that a policy invents is none
    use = ToolUse(name, time.monotonic() - began, fault)
    if isinstance(returned, Observation):
        return _content(returned.messages), use, returned
    return _content(returned), use, None


async def _made(call: Call, tools: Mapping[str, Tool], rules: CallRules, *, beyond: bool) -> tuple[str, Any]:
    """The fault, "" if there is none, and the result."""
    if call.fault:
        return "unreadable", f"Error: the call cannot be read: {call.fault}"
    tool = tools.get(call.name)
    if tool is None:
        near = difflib.get_close_matches(call.name, tools, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(tools) or 'none'}"
        return "unknown", f"Error: there is no tool {call.name!r:.80}; {hint}"
    if beyond:
        return "too many", f"Error: not called: a turn may have {rules.max_calls} calls"
    try:
        async with asyncio.timeout(rules.timeout_s if tool.can_be_cancelled else None):
            return "", await tool.call(call.arguments)
    except WrongCallError as error:
        return "arguments", f"Error: wrong arguments: {error}"
    except TimeoutError:
        return "timeout", f"Error: {call.name} did not answer within {rules.timeout_s:g} s"
    except LostToolError:
        raise
    except ToolFaultError as error:
        return "exception", f"Error: {error}"
    except Exception as error:  # told to the policy
        return "exception", f"Error: {type(error).__name__}: {error}"


def _message(call: Call, content: Content, rules: CallRules, plain: bool) -> Message:
    if not plain:
        return {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": content}
    if isinstance(content, str):
        return {"role": "user", "content": rules.text_result.replace("{result}", content)}
    before, _, after = rules.text_result.partition("{result}")
    ends = [[{"type": "text", "text": text}] if text else [] for text in (before, after)]
    return {"role": "user", "content": [*ends[0], *content, *ends[1]]}


def _content(returned: Any) -> Content:
    """What the policy is shown: a text, or parts of which some are pictures."""
    if _is_messages(returned) and any(isinstance(item["content"], list | tuple) for item in returned):
        return [part for item in returned for part in _parts(item["content"])]
    return _text(returned)


def _parts(content: Any) -> Sequence[Any]:
    return list(content) if isinstance(content, list | tuple) else [{"type": "text", "text": str(content)}]


def _is_messages(returned: Any) -> bool:
    return isinstance(returned, list | tuple) and all(
        isinstance(item, Mapping) and "content" in item for item in returned
    )


def _text(returned: Any) -> str:
    if isinstance(returned, str):
        return returned
    if returned is None:
        return ""
    if _is_messages(returned):
        return "\n".join(str(item["content"]) for item in returned)
    return json.dumps(returned, default=str, ensure_ascii=False)
