"""Messages from a peer that may be an enemy."""

import json
import struct

import pytest

from hybridrl.sandbox.inside.frames import Frame, FrameError, FrameReader, pack, parse, read_json


def frames(data, limit=1 << 20, chunk=7):
    reader = FrameReader(limit)
    return [frame for i in range(0, len(data), chunk) for frame in reader.feed(data[i : i + chunk])]


def test_what_is_packed_comes_out_whatever_the_pieces():
    sent = [
        Frame({"do": "x", "n": 2**60}, (b"\0\xff", b"", b"abc")),
        Frame({}, ()),
        Frame({"t": "\ud800é"}, (b"1",)),
    ]
    data = b"".join(pack(frame.header, *frame.parts) for frame in sent)
    for chunk in (1, 5, 1000):
        assert frames(data, chunk=chunk) == sent


@pytest.mark.parametrize("head", [(1 << 21, 0), (2, 1 << 21), (2**32 - 1, 2**32 - 1)])
def test_a_frame_beyond_the_limit_is_refused_before_it_has_come(head):
    with pytest.raises(FrameError, match="are allowed"):
        frames(struct.pack("!II", *head) + b"{}")


@pytest.mark.parametrize(
    "text",
    [
        b"\x80\x04\x95",  # pickle
        b"[" * 100_000,
        b'{"a": NaN, "sizes": []}',
        b'{"a": Infinity, "sizes": []}',
        b"[]",
        b"{}",
        b'{"sizes": [3]}',
        b'{"sizes": [-1, 1]}',
        b'{"sizes": [true]}',
        b'{"sizes": ' + json.dumps([0] * 5000).encode() + b"}",
        b"\xff\xfe",
        b'{"n": ' + b"9" * 5000 + b', "sizes": []}',
    ],
)
def test_what_is_no_frame_is_refused(text):
    with pytest.raises(FrameError):
        parse(text, b"")


def test_json_is_read_as_values_alone():
    assert read_json(b'{"__class__": "os.system", "a": [1, 2.5, null]}') == {
        "__class__": "os.system",
        "a": [1, 2.5, None],
    }
