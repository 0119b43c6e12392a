"""Messages over a socket or pipe between processes that do not trust each other: JSON and raw bytes.

    4 bytes length of the JSON, 4 bytes length of the rest, JSON with "sizes" of the byte strings, the bytes

Reading never runs code, never holds more than its limit, and refuses what does not have this form.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

_HEAD = struct.Struct("!II")
_READ_BYTES = 1 << 16
_MOST_PARTS = 1000


class FrameError(ValueError):
    """Bytes that are no frame, or a frame beyond the limit."""


@dataclass(frozen=True, slots=True)
class Frame:
    header: dict[str, Any]
    parts: tuple[bytes, ...] = ()


def pack(header: Mapping[str, Any], *parts: bytes) -> bytes:
    """The bytes of a frame; header holds JSON values, and no key "sizes"."""
    text = json.dumps({**header, "sizes": [len(part) for part in parts]}).encode()
    return _HEAD.pack(len(text), sum(map(len, parts))) + text + b"".join(parts)


class FrameReader:
    """Collects bytes as they come, and gives the frames that are whole."""

    def __init__(self, limit: int, *, text_limit: int | None = None) -> None:
        """`limit`: bytes of the parts of one frame; `text_limit`: bytes of its JSON, as many if None."""
        self._limit, self._text_limit = limit, limit if text_limit is None else text_limit
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take further bytes; yields every frame that they complete.

        Raises:
            FrameError: see parse(), or a frame beyond the limit, which is not collected.
        """
        self._bytes += data
        while len(self._bytes) >= _HEAD.size:
            text_bytes, rest_bytes = _HEAD.unpack_from(self._bytes)
            if text_bytes > self._text_limit or rest_bytes > self._limit:
                allowed = f"{self._text_limit} + {self._limit} are allowed"
                raise FrameError(f"a frame of {text_bytes} + {rest_bytes} bytes, {allowed}")
            end = _HEAD.size + text_bytes + rest_bytes
            if len(self._bytes) < end:
                return
            body = bytes(self._bytes[_HEAD.size : end])
            del self._bytes[:end]
            yield parse(body[:text_bytes], body[text_bytes:])


def parse(text: bytes, rest: bytes) -> Frame:
    """The frame of its two halves.

    Raises:
        FrameError: the text is no JSON object with sizes, or the sizes are not those of the rest.
    """
    header = read_json(text)
    sizes = header.pop("sizes", None) if isinstance(header, dict) else None
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise FrameError("a frame without sizes")
    if len(sizes) > _MOST_PARTS or sum(sizes) != len(rest):
        raise FrameError(f"a frame with {len(sizes)} parts of {sum(sizes)} bytes has {len(rest)}")
    ends = [0, *accumulate(sizes)]
    return Frame(header, tuple(rest[a:b] for a, b in pairwise(ends)))


def read_json(text: bytes) -> Any:
    """A JSON value; NaN and the infinities are none.

    Raises:
        FrameError: it is not JSON, or nested too deep.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"no JSON: {error}"[:200]) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def send(fd: int, header: Mapping[str, Any], *parts: bytes) -> None:
    """Write a frame to a descriptor that blocks."""
    data = memoryview(pack(header, *parts))
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int, reader: FrameReader) -> Frame | None:
    """Wait for the next frame of a peer that sends one and then waits for the answer. None: it is gone.

    Raises: FrameError.
    """
    while data := os.read(fd, _READ_BYTES):
        for frame in reader.feed(data):
            return frame
    return None
