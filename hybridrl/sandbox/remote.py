"""Boxes of a service elsewhere (serve.py): each is a connection, over which the same frames go.

tcp://HOST:PORT?token_file=PATH
"""

import asyncio
import socket
from dataclasses import asdict
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from hybridrl.errors import ConfigError, ResourceError, SandboxError
from hybridrl.sandbox.box import Box
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.start import Started

_CONNECT_S = 30.0


class RemoteSandbox:
    """Gives boxes of a service. The service starts them ahead or not; each serves one episode."""

    def __init__(self, url: str, limits: Limits, *, where: str = "") -> None:
        """
        Raises:
            ConfigError: the URL has another form, or its file of the token cannot be read.
        """
        self._url, self._limits, self._where = url, limits, where
        self._address, self._token = _address_and_token(url, where)
        self._taken: set[Box] = set()

    async def start(self) -> None:
        """Take a box and give it back, so that a service that cannot serve is found before a run.

        Raises:
            ResourceError: it does not answer, or refuses.
        """
        try:
            box = await self.take()
        except SandboxError as error:
            fix = "start python -m hybridrl.sandbox.serve there, with the same token"
            raise ResourceError(error.what, where=self._where, fix=fix) from error
        await box.close()

    async def take(self) -> Box:
        """
        Raises:
            SandboxError: the service does not answer, or refuses.
        """
        connection = socket.socket(socket.AF_INET)
        connection.setblocking(False)
        try:
            async with asyncio.timeout(_CONNECT_S):
                await asyncio.get_running_loop().sock_connect(connection, self._address)
        except (OSError, TimeoutError) as error:
            connection.close()
            raise SandboxError(f"the sandbox at {self._url} does not answer: {error}") from error
        hello = {"token": self._token, "limits": asdict(self._limits)}
        box = await Box.over("service", self._limits, Started(None, connection, hello, None))
        self._taken = {taken for taken in self._taken if not taken.closed} | {box}
        return box

    async def close(self) -> None:
        """End all boxes that were taken."""
        await asyncio.gather(*(box.close() for box in self._taken))


def _address_and_token(url: str, where: str) -> tuple[tuple[str, int], str]:
    form = "write tcp://HOST:PORT?token_file=PATH"
    try:
        parts = urlsplit(url)
        address = (parts.hostname or "", parts.port or 0)
    except ValueError as error:
        raise ConfigError(f"sandbox = {url!r}: {error}", where=where, fix=form) from error
    [path] = parse_qs(parts.query).get("token_file", [""])[:1]
    if parts.scheme != "tcp" or not all(address) or not path:
        raise ConfigError(f"sandbox = {url!r} is neither local nor a URL of a service", where=where, fix=form)
    return address, read_token(path, where)


def read_token(path: str, where: str = "") -> str:
    """The token that both sides know.

    Raises:
        ConfigError: the file cannot be read, or holds less than 16 characters.
    """
    try:
        token = Path(path).read_text("utf-8").strip()
    except OSError as error:
        raise ConfigError(
            f"the token of the sandbox, {path}, cannot be read: {error}", where=where
        ) from error
    if len(token) < 16:
        fix = "python -c 'import secrets; print(secrets.token_hex())' makes one"
        raise ConfigError(
            f"the token in {path} has {len(token)} characters, at least 16", where=where, fix=fix
        )
    return token
