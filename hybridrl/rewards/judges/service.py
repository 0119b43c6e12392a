"""A service that scores answers over HTTP: retries, time-outs, batches, and a limit of requests at a time.

    POST url {"items": [{"answer": ..., "row": {...}}, ...]}
    200  {"results": [0.5, {"reward": 1.0, "form": 0.0}, ...]}

Waits: ask() waits for the service, and for no request longer than (retries + 1) x request_timeout_s and the
pauses between the tries.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from hybridrl.rewards.judges.replies import Reply
from hybridrl.rewards.rules.http import HttpJudge

_MOST_BYTES = 1 << 20
"""Bytes of a response, and as many more for each further item of its batch."""

_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.25, 30.0
_SHOWN = 200
"""Characters of a response that a failure shows."""

_AGAIN = (408, 425, 429)
"""Refusals after which a request may be sent again, as after every status from 500 on."""


class _Failed(Exception):
    """A request failed; the text begins with the kind of failure."""

    def __init__(self, text: str, *, again: bool = True, pause_s: float | None = None) -> None:
        """
        Args:
            again: whether it may be sent again.
            pause_s: how long the service asks to wait before. None: it does not say.
        """
        super().__init__(text)
        self.again, self.pause_s = again, pause_s


@dataclass(frozen=True, slots=True)
class Item:
    """An answer to be judged."""

    answer: str
    row: Mapping[str, Any]


class HttpService:
    """Asks the service of one rule; all calls come from one event loop."""

    def __init__(self, rule: HttpJudge, bearer: str = "") -> None:
        self._rule, self._bearer = rule, bearer
        self._session: aiohttp.ClientSession | None = None
        self._places = asyncio.Semaphore(rule.concurrency)
        self.counts: Counter[str] = Counter()
        """Requests, retries and failed answers since the start."""

    async def ask(self, items: Sequence[Item]) -> list[Reply]:
        """The reply about each item, in order; a failure is a reply too."""
        size = self._rule.batch
        batches = [items[first : first + size] for first in range(0, len(items), size)]
        found = await asyncio.gather(*map(self._batch, batches))
        return [reply for replies in found for reply in replies]

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _batch(self, items: Sequence[Item]) -> list[Reply]:
        body, left = self._body(items), self._rule.retries
        while True:
            try:
                async with self._places:
                    return await self._post(body, len(items))
            except _Failed as error:
                if not (left and error.again):
                    self.counts["failed"] += len(items)
                    return [Reply(failure=f"{error} ({self._rule.url})")] * len(items)
                pause_s = self._pause_s(self._rule.retries - left) if error.pause_s is None else error.pause_s
            left -= 1
            self.counts["retries"] += 1
            await asyncio.sleep(min(pause_s, _MOST_PAUSE_S))

    async def _post(self, body: bytes, count: int) -> list[Reply]:
        """
        Raises:
            _Failed: there is no reply.
        """
        self.counts["requests"] += 1
        try:
            async with self._open().post(self._rule.url, data=body, allow_redirects=False) as response:
                text = await _read(response, _MOST_BYTES * count)
        except TimeoutError:
            limit_s = self._rule.request_timeout_s
            raise _Failed(f"timeout: no reply within {limit_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _Failed(f"connection: {type(error).__name__}: {error}"[:_SHOWN]) from None
        if response.status != 200:
            raise _refused(response.status, response.headers.get("Retry-After", ""), text)
        return _results(text, count)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Content-Type": "application/json"}
            if self._bearer:
                headers["Authorization"] = f"Bearer {self._bearer}"
            self._session = aiohttp.ClientSession(
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=self._rule.request_timeout_s),
                connector=aiohttp.TCPConnector(limit=self._rule.concurrency),
            )
        return self._session

    def _body(self, items: Sequence[Item]) -> bytes:
        fields = self._rule.fields
        sent = [
            {
                "answer": item.answer,
                "row": dict(item.row) if fields is None else {name: item.row.get(name) for name in fields},
            }
            for item in items
        ]
        return json.dumps({"items": sent}, default=_plain).encode("utf-8", "surrogatepass")

    def _pause_s(self, tries: int) -> float:
        """Seconds before the next try: twice as long each time, and not the same for all requests."""
        return _FIRST_PAUSE_S * 2**tries * random.uniform(0.5, 1.0)


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """
    Raises:
        _Failed: there is more than `most` bytes.
    """
    found = bytearray()
    async for part in response.content.iter_chunked(1 << 16):
        found += part
        if len(found) > most:
            raise _Failed(f"garbage: more than {most} bytes", again=False)
    return bytes(found)


def _refused(status: int, retry_after: str, text: bytes) -> _Failed:
    shown = text[:_SHOWN].decode(errors="replace")
    pause_s = float(retry_after) if retry_after.isdecimal() else None
    return _Failed(
        f"http_{status}: {shown}".rstrip(": "), again=status >= 500 or status in _AGAIN, pause_s=pause_s
    )


def _results(text: bytes, count: int) -> list[Reply]:
    """
    Raises:
        _Failed: the response has another form.
    """
    shown = text[:_SHOWN].decode(errors="replace")
    try:
        results = json.loads(text)["results"]
        if not isinstance(results, list) or len(results) != count:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _Failed(f"garbage: not {{'results': [...]}} with {count} of them: {shown}") from None
    return [Reply(result) for result in results]


def _plain(value: Any) -> Any:
    """A value that JSON does not know, such as a number of numpy or a date."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
