"""Frames are read strictly: what a child writes runs no code, fills no memory, and stops no reader."""

import asyncio
import datetime
import io
import pickle
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image

from hybridrl.environments import frames
from hybridrl.environments.base import Call, Observation, ToolUse, Turn
from hybridrl.environments.observations import (
    UnreadableObservation,
    read_observation,
    read_turn,
    to_plain,
    turn_to_plain,
)


def read(data: bytes) -> Any:
    async def run() -> Any:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await frames.read(reader)

    return asyncio.run(run())


def test_what_msgpack_lacks_becomes_plain() -> None:
    day = datetime.date(2026, 11, 30)
    value = {"a": np.arange(2), "b": np.float32(0.5), "c": {3, 1}, "d": day, "e": 2**70, "f": (1, b"x")}
    found = {"a": [0, 1], "b": 0.5, "c": [1, 3], "d": "2026-11-30", "e": str(2**70), "f": [1, b"x"]}
    assert read(frames.pack(value)) == found


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",  # never used in msgpack
        msgpack.packb(msgpack.ExtType(4, b"x")),
        msgpack.packb([1])[:-1],
        msgpack.packb(1) + b"x",
        b"\x91" * 5000 + b"\x01",  # lists in lists
        pickle.dumps(print),
    ],
)
def test_bytes_that_are_no_frame_are_refused(body: bytes) -> None:
    with pytest.raises(frames.BadFrameError):
        read(struct.pack(">I", len(body)) + body)


def test_a_frame_that_claims_to_be_large_is_not_read() -> None:
    with pytest.raises(frames.BadFrameError, match="more than"):
        read(struct.pack(">I", 2**32 - 1))


def test_observations_and_turns_travel_whole() -> None:
    seen = Observation(
        [{"role": "user", "content": "x"}],
        reward=np.float32(0.5),  # type: ignore[arg-type]
        done=np.bool_(True),  # type: ignore[arg-type]
        anchor=(1, 2),  # type: ignore[arg-type]
        metrics={"m": 1},
        agent=1,
        rewards={0: -1},
        uses=(ToolUse("t", 0.1, "arguments"),),
    )
    found = read_observation(read(frames.pack(to_plain(seen))))
    assert found == Observation(
        ({"role": "user", "content": "x"},), 0.5, True, "(1, 2)", {"m": 1.0}, 1, {0: -1.0}, seen.uses
    )
    turn = Turn("t", "h", (Call("n", {"a": 1}, "i"),), "length", 2)
    assert read_turn(read(frames.pack(turn_to_plain(turn)))) == turn


def test_pictures_travel_as_bytes() -> None:
    parts = (
        {"type": "image", "image": Image.new("RGB", (3, 2), (1, 2, 3))},
        {"type": "image", "image": b"encoded"},
        {"type": "text", "text": "?"},
    )
    seen = Observation([{"role": "user", "content": parts}])
    (message,) = read_observation(read(frames.pack(to_plain(seen)))).messages
    drawn, *others = message["content"]
    assert others == [{"type": "image", "image": b"encoded"}, {"type": "text", "text": "?"}]
    opened = Image.open(io.BytesIO(drawn["image"]))
    assert opened.size == (3, 2) and opened.getpixel((2, 1)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reward": "1"}, "reward = '1'"),
        ({"reward": True}, ""),
        ({"done": 1}, "done = 1"),
        ({"agent": -1}, "agent = -1"),
        ({"agent": True}, "agent = True"),
        ({"anchor": [1]}, "anchor"),
        ({"messages": {"role": "user"}}, "which is not a list"),
        ({"messages": [{"role": "user"}]}, "content is not text"),
        ({"messages": [{"role": "user", "content": []}]}, "is not text, or parts of type text and image"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "parts of type text and image"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "parts of type text"),
        ({"metrics": {1: 2.0}}, "a metric named 1"),
        ({"metrics": {"a": float("inf")}}, "not a finite number"),
        ({"rewards": {"x": 1.0}}, "the agent 'x'"),
        ({"uses": [["t", -1.0, ""]]}, "call of a tool"),
        ({"uses": [["t", 1.0, "invented"]]}, "call of a tool"),
    ],
)
def test_lies_are_named(change: dict[str, Any], said: str) -> None:
    plain = to_plain(Observation()) | change
    if change == {"reward": True}:
        assert read_observation(plain).reward == 1.0  # a comparison is a number, as in rewards
        return
    with pytest.raises(UnreadableObservation) as caught:
        read_observation(plain)
    assert said in str(caught.value)
