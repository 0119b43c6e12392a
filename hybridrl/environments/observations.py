"""What environments return, as plain values on the wire, and read strictly on the other side."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hybridrl.environments.base import Call, Message, Observation, ToolUse, Turn

_ROLES = ("system", "user", "assistant", "tool")
_NUMBERS = (int, float)
_USE_FAULTS = ("", "unknown", "unreadable", "arguments", "exception", "timeout", "too many")


class UnreadableObservation(ValueError):
    """Something that is no observation; the message says what is wrong, as a predicate of "it"."""


def to_plain(returned: Any) -> dict[str, Any]:
    """What an environment returned as values that can be sent; `read_observation` checks them.

    Raises:
        UnreadableObservation: it is neither an Observation nor a string.
    """
    if isinstance(returned, str):
        returned = Observation(returned)
    if not isinstance(returned, Observation):
        raise UnreadableObservation(f"returned {returned!r:.80}, not an Observation or a string")
    seen = {name: _number(getattr(returned, name)) for name in ("reward", "done", "agent", "anchor")}
    if seen["anchor"] is not None and not isinstance(seen["anchor"], (int, str)):
        seen["anchor"] = repr(seen["anchor"])
    text = isinstance(returned.messages, str)
    return seen | {
        "messages": returned.messages if text else [_sendable(message) for message in returned.messages],
        "metrics": {str(k): _number(v) for k, v in returned.metrics.items()},
        "rewards": {str(k): _number(v) for k, v in returned.rewards.items()},
        "uses": [[use.name, use.seconds, use.fault] for use in returned.uses],
    }


def read_observation(plain: Any) -> Observation:
    """
    Raises:
        UnreadableObservation: a value is missing, of another type, or not finite.
    """
    if not isinstance(plain, dict):
        raise UnreadableObservation(f"answered {plain!r:.80}")
    done, agent, anchor = plain.get("done"), plain.get("agent"), plain.get("anchor")
    if not isinstance(done, bool):
        raise UnreadableObservation(f"returned done = {done!r:.80}, which is not True or False")
    if not isinstance(agent, int) or not _is_index(agent):
        raise UnreadableObservation(f"returned agent = {agent!r:.80}, which is not 0, 1, ...")
    if anchor is not None and not isinstance(anchor, (int, str)):
        raise UnreadableObservation(f"returned anchor = {anchor!r:.80}, which is not a number or text")
    return Observation(
        messages=_messages(plain.get("messages")),
        reward=_finite(plain.get("reward"), "reward"),
        done=done,
        anchor=anchor,
        metrics={_name(k): _finite(v, f"metrics[{k!r:.40}]") for k, v in _mapping(plain, "metrics")},
        agent=agent,
        rewards={_agent(k): _finite(v, f"rewards[{k!r:.40}]") for k, v in _mapping(plain, "rewards")},
        uses=tuple(_use(item) for item in _list(plain.get("uses"), "uses")),
    )


def turn_to_plain(turn: Turn) -> dict[str, Any]:
    return asdict(turn)


def read_turn(plain: Mapping[str, Any]) -> Turn:
    calls = tuple(Call(**call) for call in plain["calls"])
    return Turn(**{**plain, "calls": calls})


def _number(value: Any) -> Any:
    """A Python number for a scalar of numpy or torch; anything else as it is."""
    return value.item() if hasattr(value, "item") and not isinstance(value, type) else value


def _messages(plain: Any) -> tuple[Message, ...]:
    if isinstance(plain, str):
        return ({"role": "user", "content": plain},)
    return tuple(_message(item) for item in _list(plain, "messages"))


def _message(plain: Any) -> Message:
    if not isinstance(plain, dict) or plain.get("role") not in _ROLES:
        raise UnreadableObservation(
            f"returned the message {plain!r:.80}, which has no role of {', '.join(_ROLES)}"
        )
    content = plain.get("content")
    parts = isinstance(content, list) and bool(content) and all(map(_is_part, content))
    if not isinstance(content, str) and not parts:
        raise UnreadableObservation(
            f"returned the message {plain!r:.80}, whose content is not text, or parts of type text and image"
        )
    return plain


def _is_part(part: Any) -> bool:
    match part:
        case {"type": "text", "text": str()} | {"type": "image", "image": bytes() | str()}:
            return True
    return False


def _sendable(message: Any) -> Any:
    """A message whose pictures of Pillow are bytes."""
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list | tuple):
        return message
    return {**message, "content": [_sendable_part(part) for part in message["content"]]}


def _sendable_part(part: Any) -> Any:
    picture: Any = part.get("image") if isinstance(part, Mapping) else None
    if not (hasattr(picture, "save") and hasattr(picture, "convert")):
        return part
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return {**part, "image": out.getvalue()}


def _use(plain: Any) -> ToolUse:
    match plain:
        case [str(name), float(seconds), str(fault)] if seconds >= 0 and fault in _USE_FAULTS:
            return ToolUse(name, seconds, fault)
    raise UnreadableObservation(f"answered {plain!r:.80} for a call of a tool")


def _finite(value: Any, what: str) -> float:
    if not isinstance(value, _NUMBERS) or not math.isfinite(value):
        raise UnreadableObservation(f"returned {what} = {value!r:.80}, which is not a finite number")
    return float(value)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _agent(key: Any) -> int:
    if not (isinstance(key, str) and key.isdecimal() and _is_index(int(key))):
        raise UnreadableObservation(f"returned rewards for the agent {key!r:.80}, which is not 0, 1, ...")
    return int(key)


def _name(key: Any) -> str:
    if not isinstance(key, str):
        raise UnreadableObservation(f"returned a metric named {key!r:.80}")
    return key


def _mapping(plain: Mapping[str, Any], name: str) -> Sequence[tuple[Any, Any]]:
    value = plain.get(name)
    if not isinstance(value, dict):
        raise UnreadableObservation(f"returned {name} = {value!r:.80}, which is not a mapping")
    return list(value.items())


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise UnreadableObservation(f"returned {name} = {value!r:.80}, which is not a list")
    return value
