"""Messages between a process and its child: a length and msgpack, read strictly.

Whatever the child writes is data: nothing in it can run code in the reader, and no frame is larger than
`MOST_BYTES`. Reading waits for a whole frame; the caller sets a deadline.
"""

import asyncio
import datetime
import struct
from typing import Any

import msgpack

MOST_BYTES = 64 * 2**20
"""Largest frame."""

_LENGTH = struct.Struct(">I")


class BadFrameError(ValueError):
    """Bytes that are no frame."""


def pack(value: Any) -> bytes:
    """A value as a frame. What msgpack lacks becomes a list, where it is an array, or else text.

    Raises:
        ValueError: it nests too deeply, or takes more than MOST_BYTES.
    """
    body = msgpack.packb(value, default=_plain, strict_types=False)
    if body is None or len(body) > MOST_BYTES:
        raise ValueError(f"a message takes more than {MOST_BYTES / 1e6:.0f} MB")
    return _LENGTH.pack(len(body)) + body


async def read(reader: asyncio.StreamReader) -> Any:
    """The next frame's value.

    Raises:
        BadFrameError: what was read is no frame; nothing further can be read.
        EOFError: the other side is gone.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MOST_BYTES:
        raise BadFrameError(f"a frame of {length} bytes, which is more than {MOST_BYTES}")
    return value_of(await reader.readexactly(length))


def value_of(body: bytes) -> Any:
    """
    Raises:
        BadFrameError: these bytes are no msgpack of plain values.
    """
    try:
        return msgpack.unpackb(body, ext_hook=_no_extension, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError, TypeError) as error:
        raise BadFrameError(f"not msgpack: {error}") from error


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"an extension type {code}")


def _plain(value: Any) -> Any:
    if isinstance(value, int):  # beyond 64 bits
        return str(value)
    if hasattr(value, "tolist"):  # arrays and scalars of numpy and torch
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value)
