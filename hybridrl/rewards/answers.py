"""What a scoring process answers its owner, as JSON: code of a user runs there, so its bytes are read as an
enemy's. Reading makes values of the known types alone, and takes one line of a bounded size at a time.

    {"kind": "results"}, and a line per item: [reward, {part: number}], {"unjudged": why}, a text, or null
    {"kind": "error"}, and a line for the error: [class, what, where, fix], [[...], ...] for several
    {"kind": "loaded"}, and a line with the fields of Loaded
    {"kind": "pid"}, and a number
"""

import json
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from hybridrl import errors
from hybridrl.errors import ConfigErrors, HybridRLError
from hybridrl.rewards.score import Score, Unjudged
from hybridrl.sandbox.inside.frames import Frame, FrameError, FrameReader, pack, read_json

Result = Score | Unjudged | str | None

_HEAD_BYTES = 1 << 12
_LINE_BYTES = 1 << 20
_ANSWER_BYTES = 64 << 20
_TEXT = 4000
"""Characters of an error's text that are sent."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the owner needs to know about a reward."""

    place: str
    hang_score: float | None
    makes_gold: bool
    checks_rows: bool


def reader() -> FrameReader:
    """Reads the frames of one process, within bounds."""
    return FrameReader(_ANSWER_BYTES, text_limit=_HEAD_BYTES)


def results_frame(results: Sequence[Result]) -> bytes:
    """The answer to a job."""
    return _frame("results", *map(_result_values, results))


def error_frame(error: HybridRLError) -> bytes:
    return _frame("error", _error_values(error))


def loaded_frame(loaded: Loaded) -> bytes:
    return _frame("loaded", astuple(loaded))


def pid_frame(pid: int) -> bytes:
    return _frame("pid", pid)


def read_results(frame: Frame, count: int) -> list[Result] | HybridRLError:
    """The results of a job of `count` items, or the error that ended it.

    Raises:
        FrameError: the answer has another form.
    """
    if frame.header.get("kind") == "error":
        return _error(_line(frame))
    lines = _lines(frame, "results", count)
    return [_result(read_json(line)) for line in lines]


def read_loaded(frame: Frame) -> Loaded | HybridRLError:
    """
    Raises:
        FrameError: the answer has another form.
    """
    if frame.header.get("kind") == "error":
        return _error(_line(frame))
    match read_json(_lines(frame, "loaded", 1)[0]):
        case [str(place), hang_score, bool(makes_gold), bool(checks_rows)]:
            return Loaded(place, _number(hang_score, "hang_score"), makes_gold, checks_rows)
        case other:
            raise FrameError(f"loaded {other!r:.80}")


def read_pid(frame: Frame) -> int:
    """
    Raises:
        FrameError: the answer has another form.
    """
    pid = read_json(_lines(frame, "pid", 1)[0])
    if type(pid) is not int or not 0 <= pid < 1 << 31:
        raise FrameError(f"pid {pid!r:.80}")
    return pid


def _frame(kind: str, *values: Any) -> bytes:
    """A frame with a line for each value; a line beyond the bound is an error of its own."""
    lines = [json.dumps(value).encode() for value in values]
    if any(len(line) >= _LINE_BYTES for line in lines) or sum(map(len, lines)) + len(lines) > _ANSWER_BYTES:
        what = f"a reward returned more than {_LINE_BYTES} bytes for an item"
        return error_frame(errors.RewardError(what, fix="return numbers and a few short names"))
    return pack({"kind": kind}, b"".join(line + b"\n" for line in lines))


def _lines(frame: Frame, kind: str, count: int) -> list[bytes]:
    if frame.header.get("kind") != kind or len(frame.parts) != 1:
        raise FrameError(f"an answer of kind {frame.header.get('kind')!r:.40}, {kind!r} was asked for")
    lines = frame.parts[0].splitlines()
    if len(lines) != count or max(map(len, lines), default=0) > _LINE_BYTES:
        raise FrameError(f"{len(lines)} lines for {count} items")
    return lines


def _line(frame: Frame) -> Any:
    return read_json(_lines(frame, "error", 1)[0])


def _result_values(result: Result) -> Any:
    match result:
        case Score(reward, parts):
            return [reward, parts]
        case Unjudged(why):
            return {"unjudged": why[:_TEXT]}
    return result


def _result(found: Any) -> Result:
    match found:
        case None | str():
            return found
        case {"unjudged": str(why)} if len(found) == 1:
            return Unjudged(why)
        case [reward, dict(parts)]:
            named = {name: _number(value, "a part") for name, value in parts.items()}
            number = _number(reward, "a reward")
            if number is not None and None not in named.values():
                return Score(number, {name: value for name, value in named.items() if value is not None})
    raise FrameError(f"a result {found!r:.80}")


def _number(found: Any, what: str) -> float | None:
    if found is None:
        return None
    if type(found) not in (int, float) or not math.isfinite(found):
        raise FrameError(f"{what} {found!r:.80}")
    return float(found)


def _error_values(error: HybridRLError) -> list[Any]:
    if isinstance(error, ConfigErrors):
        return [_error_values(one) for one in error.errors[:20]]
    return [type(error).__name__, *(str(text)[:_TEXT] for text in (error.what, error.where, error.fix))]


def _error(found: Any) -> HybridRLError:
    match found:
        case [str(name), str(what), str(where), str(fix)]:
            kind = getattr(errors, name, None)
            if not (isinstance(kind, type) and issubclass(kind, HybridRLError)) or kind is ConfigErrors:
                raise FrameError(f"an error of class {name!r:.40}")
            return kind(what, where=where, fix=fix)
        case [[*_], *_] if len(found) <= 20:
            return ConfigErrors([_error(one) for one in found])
    raise FrameError(f"an error {found!r:.80}")
