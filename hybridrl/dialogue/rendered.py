"""A dialogue by the library renderers (PyPI), which knows the chat formats of model families over token ids.

It is used if it writes openings exactly as the tokenizer's own template does; otherwise template.py is.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hybridrl.data.tokenize import ModelTokenizer
from hybridrl.dialogue.safe_text import SafeText
from hybridrl.dialogue.template import up_to_stop
from hybridrl.environments.base import Call, Message, ToolSchema, Turn
from hybridrl.errors import DataError, HybridRLError
from hybridrl.types import Finish

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "deepseek_v3": ("deepseek-r1", "deepseek-v3"),
    "glm4_moe": ("glm-4.5",),
    "gpt_oss": ("gpt-oss",),
    "kimi_k2": ("kimi-k2",),
    "llama": ("llama-3",),
    "minimax_m2": ("minimax-m2",),
    "qwen3": ("qwen3", "prime-qwen3"),
    "qwen3_moe": ("qwen3",),
}
"""model_type of config.json -> names of renderers that may be the model's."""

_FAULTS = {
    "invalid_json": "invalid JSON",
    "unclosed_block": "it does not end",
    "missing_name": "it has no name",
    "malformed_structure": "it is not written as a call",
}
_UNFIT = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, AssertionError)
"""What renderers raise on a tokenizer of another family, or on messages that they cannot write."""

_PROBE_TOOL = {
    "name": "probe",
    "description": "Probe.",
    "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
}
_SYSTEM, _USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}


class RenderedDialogue:
    """Implements Dialogue over a renderer that keeps earlier thinking."""

    def __init__(self, renderer: Any, tokenizer: ModelTokenizer) -> None:
        self._renderer, self._safe = renderer, SafeText(tokenizer)
        stops = {*tokenizer.stop_token_ids, *renderer.get_stop_token_ids()}
        self.stop_token_ids = tuple(sorted(stops))

    def begin(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        return self._renderer.render_ids(_plain(messages), tools=_specs(tools), add_generation_prompt=True)

    def more(
        self,
        history: Sequence[int],
        answer: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
    ) -> list[int]:
        before = [*history, *answer]
        new = _plain(self._safe.messages(messages))
        found = self._renderer.bridge_to_next_turn(list(history), list(answer), new, tools=_specs(tools))
        if found is None or list(found.token_ids[: len(before)]) != before:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise DataError(
                f"{type(self._renderer).__name__} cannot continue a conversation with messages of {roles}",
                where="data.chat_template",
                fix="answer a turn with messages of the user or of tools",
            )
        return list(found.token_ids[len(before) :])

    def write(self, message: Message, tools: Sequence[ToolSchema]) -> list[int]:
        asked = self.begin([_USER], tools)
        whole = self._renderer.render_ids(
            [_USER, {**message, "content": message.get("content") or ""}], tools=_specs(tools)
        )
        if whole[: len(asked)] != asked:
            raise DataError(
                f"{type(self._renderer).__name__} writes a question anew when an answer follows",
                where="data.chat_template",
            )
        return up_to_stop(whole[len(asked) :], self.stop_token_ids)

    def read(self, answer: Sequence[int], finish: Finish, tools: Sequence[ToolSchema]) -> Turn:
        found = self._renderer.parse_response(list(answer), tools=_specs(tools))
        calls = tuple(_call(one) for one in found.tool_calls) if tools else ()
        return Turn(found.content or "", found.reasoning_content or "", calls, finish)


def rendered_dialogue(tokenizer: ModelTokenizer, model_type: str) -> RenderedDialogue | None:
    """The dialogue of a family; None if the library is not installed, or knows no renderer that writes
    openings as the tokenizer's own template does."""
    if model_type not in FAMILIES or importlib.util.find_spec("renderers") is None:
        return None
    for name in FAMILIES[model_type]:
        renderer = _renderer(tokenizer, name)
        if renderer is not None and _writes_as_the_template(renderer, tokenizer):
            return RenderedDialogue(renderer, tokenizer)
    return None


def _renderer(tokenizer: ModelTokenizer, name: str) -> Any:
    """A renderer by its name; None if the tokenizer lacks a token that it needs."""
    from renderers import create_renderer
    from renderers.configs import config_from_name

    config = config_from_name(name)
    if config is None:
        return None
    try:
        return create_renderer(tokenizer.hf, config.model_copy(update={"thinking_retention": "all"}))
    except _UNFIT:
        return None


def _writes_as_the_template(renderer: Any, tokenizer: ModelTokenizer) -> bool:
    """Whether openings are the same by both, with and without tools."""
    tool = {"type": "function", "function": _PROBE_TOOL}
    for messages, tools in (([_USER], []), ([_SYSTEM, _USER], []), ([_SYSTEM, _USER], [tool])):
        try:
            (expected,) = tokenizer.encode(
                [tokenizer.render(messages, tools=tools)], add_special_tokens=False
            )
            found = renderer.render_ids(messages, tools=_specs(tools), add_generation_prompt=True)
        except (HybridRLError, *_UNFIT):
            return False
        if list(found) != expected:
            return False
    return True


def _specs(tools: Sequence[ToolSchema]) -> list[dict[str, Any]] | None:
    return [dict(tool) for tool in tools] or None


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [dict(message) for message in messages]


def _call(found: Any) -> Call:
    status, arguments = str(found.status), found.arguments
    fault = "" if status in ("ok", "unknown_tool") else _FAULTS.get(status, status)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            fault = fault or f"invalid JSON: {error}"
    if not fault and not isinstance(arguments, dict):
        fault = "its arguments are no object"
    return Call(
        found.name or "", arguments if isinstance(arguments, dict) else {}, fault=fault, text=found.raw
    )
