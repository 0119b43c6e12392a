"""A service that gives boxes to other machines: python -m hybridrl.sandbox.serve --token-file FILE

    client --hello: token, limits--> this process --starts--> a box; from then on bytes go both ways unread

A connection is a box: when the client is gone, the box is ended. The connection is not encrypted: serve it in
a network that is yours.
"""

import argparse
import asyncio
import hmac
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hybridrl.errors import ConfigError, SandboxError
from hybridrl.sandbox.box import Box
from hybridrl.sandbox.inside.frames import Frame, FrameError, FrameReader, pack
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.remote import read_token
from hybridrl.sandbox.start import Kind
from hybridrl.sandbox.support import inspect

_HELLO_BYTES = 1 << 12
_HELLO_S = 30.0
_CHUNK = 1 << 16


class Service:
    """Serves at most `most` boxes at a time."""

    def __init__(self, kind: Kind, token: str, *, most: int = 256) -> None:
        self._kind: Kind = kind
        self._token, self._most = token, most
        self._boxes: set[Box] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection until one side ends."""
        try:
            limits = self._admitted(await _hello(reader))
            box = await Box.start(self._kind, limits)
        except (FrameError, SandboxError, TimeoutError) as error:
            writer.write(pack({"ready": False, "error": str(error) or "there was no hello"}))
        else:
            self._boxes.add(box)
            writer.write(pack({"ready": True}))
            await _pump(box, reader, writer)
            self._boxes.discard(box)
            await box.close()
        finally:
            writer.close()

    def _admitted(self, hello: Frame) -> Limits:
        """
        Raises:
            SandboxError: the token is not ours, the limits have another form, or there are too many boxes.
        """
        token = hello.header.get("token")
        if not isinstance(token, str) or not hmac.compare_digest(token.encode(), self._token.encode()):
            raise SandboxError("the token is another one")
        if len(self._boxes) >= self._most:
            raise SandboxError(f"{self._most} boxes are taken")
        return _limits(hello.header.get("limits"))


def _limits(found: Any) -> Limits:
    kinds = {field.name: type(field.default) for field in fields(Limits)}
    if not isinstance(found, Mapping) or set(found) != set(kinds):
        raise SandboxError(f"limits of another form: {found!r:.100}")
    for name, kind in kinds.items():
        value = found[name]
        if isinstance(value, bool) or not isinstance(value, int | kind) or not 0 < value < 1 << 40:
            raise SandboxError(f"limit {name} = {value!r:.40}")
    return Limits(**found)


async def _hello(reader: asyncio.StreamReader) -> Frame:
    frames = FrameReader(_HELLO_BYTES)
    async with asyncio.timeout(_HELLO_S):
        while data := await reader.read(_HELLO_BYTES):
            for frame in frames.feed(data):
                return frame
    raise FrameError("the connection ended before its hello")


async def _pump(box: Box, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes both ways until one side ends."""
    connection, loop = box.connection, asyncio.get_running_loop()

    async def inwards() -> None:
        while data := await reader.read(_CHUNK):
            await loop.sock_sendall(connection, data)

    async def outwards() -> None:
        while data := await loop.sock_recv(connection, _CHUNK):
            writer.write(data)
            await writer.drain()

    tasks = [asyncio.ensure_future(inwards()), asyncio.ensure_future(outwards())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def run(host: str, port: int, token_file: str, most: int) -> None:
    """Serve until the process is ended.

    Raises:
        ConfigError: the token cannot be read, or no box can be made here.
    """
    support = await inspect()
    if support.kind is None:
        raise ConfigError(f"no box can be made here: {support.why}", fix=support.fix)
    service = Service(support.kind, read_token(token_file), most=most)
    server = await asyncio.start_server(service.serve, host, port)
    shown = ", ".join("{}:{}".format(*one.getsockname()[:2]) for one in server.sockets)
    print(f"boxes of kind {support.kind} at {shown}", flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m hybridrl.sandbox.serve", description="Gives boxes to others."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=7100)
    parser.add_argument("--token-file", required=True, help="file with the token that clients know")
    parser.add_argument("--most", type=int, default=256, help="boxes at a time")
    given = parser.parse_args()
    asyncio.run(run(given.host, given.port, given.token_file, given.most))


if __name__ == "__main__":
    main()
