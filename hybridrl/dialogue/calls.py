"""How a chat template writes calls of tools, found by rendering some, and how they are read from answers.

Only templates that write a call as a JSON object are understood: {"name": ..., "arguments": {...}} between an
opening and a closing mark, as <tool_call> and </tool_call>, or alone.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hybridrl.environments.base import Call
from hybridrl.errors import ConfigError

NAME, ARGUMENT, VALUE = "probe_name", "probe_argument", "probe value"
"""What the probe call consists of."""


@dataclass(frozen=True, slots=True)
class CallFormat:
    """The form of one call."""

    opening: str
    """Text before the JSON object, without white space around it; "": the object stands alone."""

    closing: str
    name_key: str
    arguments_key: str

    def read(self, text: str) -> tuple[str, tuple[Call, ...]]:
        """The text without its calls, and the calls, in order. A call that cannot be read names its fault."""
        if not self.opening:
            return self._read_alone(text)
        calls: list[Call] = []
        kept, at = "", 0
        while (begin := text.find(self.opening, at)) >= 0:
            kept += text[at:begin]
            start = begin + len(self.opening)
            end = text.find(self.closing, start) if self.closing else -1
            written = text[start:] if end < 0 else text[start:end]
            at = len(text) if end < 0 else end + len(self.closing)
            open_ended = end < 0 and bool(self.closing)
            calls.append(self._call(written, f"it does not end with {self.closing}" if open_ended else ""))
        return (kept + text[at:]).strip() if calls else text, tuple(calls)

    def _read_alone(self, text: str) -> tuple[str, tuple[Call, ...]]:
        """A text that is one JSON object with a name is a call; any other text is not."""
        found = _parsed(text)
        if isinstance(found, dict) and self.name_key in found:
            return "", (self._call(text),)
        return text, ()

    def _call(self, written: str, fault: str = "") -> Call:
        found = _parsed(written)
        if isinstance(found, str):
            return Call("", fault=fault or f"invalid JSON: {found}", text=written)
        name = found.get(self.name_key) if isinstance(found, dict) else None
        if not isinstance(name, str) or not name:
            return Call("", fault=f"it is no object with a field {self.name_key!r}", text=written)
        arguments = found.get(self.arguments_key, {})
        if isinstance(arguments, str):  # some models write the arguments as JSON in a string
            arguments = _parsed(arguments)
        if not isinstance(arguments, dict):
            return Call(name, fault=f"its {self.arguments_key} are no object", text=written)
        return Call(name, arguments, fault=fault, text=written)


FOR_TOOLS = "a model that was made for tools"
"""What helps where a chat template has no format for calls."""


def no_call_format(why: str) -> ConfigError:
    """The error for tools that the policy has no way to call."""
    return ConfigError(why, where="data.chat_template", fix=FOR_TOOLS)


def probe_call(index: int = 0) -> dict[str, Any]:
    """A call in OpenAI's form whose place a rendering shows."""
    own = {"name": NAME, "arguments": {ARGUMENT: VALUE}}
    return {"id": f"call{index:05d}", "type": "function", "function": own}


def format_of(written: str) -> CallFormat | None:
    """The form of the probe call.

    Args:
        written: an assistant's message with the probe call, as the template writes it, without what the
            template writes around every message.
    """
    for begin, end, found in _objects(written):
        name_key = next((key for key, value in found.items() if value == NAME), None)
        arguments_key = next((key for key, value in found.items() if _is_probe(value)), None)
        if name_key and arguments_key:
            opening, closing = _last_line(written[:begin]), _first_line(written[end:])
            return CallFormat(opening, closing if opening else "", name_key, arguments_key)
    return None


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _is_probe(value: Any) -> bool:
    read = _parsed(value) if isinstance(value, str) else value
    return isinstance(read, dict) and read.get(ARGUMENT) == VALUE


def _objects(text: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(begin, end, value) of every JSON object in a text, outer ones first."""
    for match in re.finditer(r"\{", text):
        try:
            value, end = json.JSONDecoder().raw_decode(text, match.start())
        except ValueError:
            continue
        yield match.start(), end, value


def _parsed(text: str) -> Any:
    """The value of a JSON text; a string that says why it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return str(error)
    return value if not isinstance(value, str) else f"{value!r:.40} is a text"
