"""Plain Python values as JSON, so that what an untrusted program returns is compared elsewhere.

None, bool, int, float, str and list stand for themselves; other values are objects with one letter:

    i int beyond 2**53   f inf or nan   t tuple   d dict   s set   z frozenset   b bytes   c complex
    o an object that stays where it is, by number

Values are of exactly these types when they are read: no method of the program comes with them.
"""

import base64
import math
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 64
_SAFE = 1 << 53

Reference = Callable[[Any], dict[str, Any]]


class NotPlain(ValueError):
    """A value that is none of these, or nested too deep."""


def encode(value: Any, reference: Reference | None = None, depth: int = 0) -> Any:
    """JSON for a value. `reference` gives the object of "o" for what is not plain.

    Raises:
        NotPlain: there is something else in it, and no `reference`.
    """
    if depth > MAX_DEPTH:
        raise NotPlain("nested too deep")

    def inner(values: Any) -> list[Any]:
        return [encode(v, reference, depth + 1) for v in values]

    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        value = int(value)
        return value if -_SAFE < value < _SAFE else {"i": hex(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"f": repr(float(value))}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, complex):
        return {"c": inner([value.real, value.imag])}
    if isinstance(value, bytes | bytearray):
        return {"b": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {"d": [inner(pair) for pair in value.items()]}
    for kind, letter in ((tuple, "t"), (set, "s"), (frozenset, "z")):
        if isinstance(value, kind):
            return {letter: inner(value)}
    if isinstance(value, list):
        return inner(value)
    if hasattr(value, "tolist") and not isinstance(value, type):  # a scalar or an array of numpy
        return encode(value.tolist(), reference, depth + 1)
    if reference is None:
        raise NotPlain(f"a value of type {type(value).__name__}")
    return {"o": reference(value)}


def decode(found: Any, make: Callable[[dict[str, Any]], Any] | None = None, depth: int = 0) -> Any:
    """The value of what encode() wrote. `make` gives a value for an "o".

    Raises:
        NotPlain: it has another form, a member of a set or a key that has no hash, or an "o" without `make`.
    """
    if depth > MAX_DEPTH:
        raise NotPlain("nested too deep")
    if isinstance(found, list):
        return [decode(v, make, depth + 1) for v in found]
    if not isinstance(found, dict):
        return found
    if len(found) != 1:
        raise NotPlain(f"an object with {len(found)} keys")
    ((letter, inner),) = found.items()
    try:
        return _tagged(letter, inner, make, depth + 1)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise NotPlain(f"{letter!r:.20}: {error}"[:200]) from None


def _tagged(letter: str, inner: Any, make: Callable[[dict[str, Any]], Any] | None, depth: int) -> Any:
    if letter == "o" and make is not None and isinstance(inner, dict):
        return make(inner)
    if letter == "i":
        return int(inner, 16)
    if letter == "f":
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[inner]
    if letter == "b":
        return base64.b64decode(inner, validate=True)
    if letter not in "tdszc" or not isinstance(inner, list):
        raise NotPlain("no letter of a value")
    values = decode(inner, make, depth)
    if letter == "d":
        return {_key(pair): pair[1] for pair in values}
    if letter == "c":
        return complex(*values)
    return {"t": tuple, "s": set, "z": frozenset}[letter](values)


def _key(pair: Any) -> Any:
    if not isinstance(pair, list) or len(pair) != 2:
        raise NotPlain("a dict without pairs")
    return pair[0]
