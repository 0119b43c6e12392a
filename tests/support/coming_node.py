"""A node of a run that comes and goes when a test says so."""

import asyncio


class ComingNode:
    """What Replacements asks of a LateNode."""

    def __init__(self):
        self._there, self.failures = asyncio.Event(), []

    def is_there(self):
        return self._there.is_set()

    async def come(self):
        await self._there.wait()
        if self.failures:
            raise self.failures.pop(0)

    def comes(self):
        self._there.set()

    def goes(self):
        self._there.clear()
