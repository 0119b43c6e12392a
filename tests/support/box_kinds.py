"""Skips tests of boxes where the machine refuses boxes of their kind, as most containers do."""

import asyncio
from functools import cache

import pytest

from hybridrl.errors import SandboxError
from hybridrl.sandbox.box import Box
from hybridrl.sandbox.limits import Limits


def need(*kinds: str) -> None:
    """Skip the test unless a box of one of these kinds can be made here."""
    reasons = [refused(kind) for kind in kinds]
    if all(reasons):
        pytest.skip("; ".join(reasons))


@cache
def refused(kind: str) -> str:
    """Why a box of this kind cannot be made here; "" if it can."""

    async def made() -> None:
        await (await Box.start(kind, Limits())).close()  # pyright: ignore[reportArgumentType]

    try:
        asyncio.run(made())
    except SandboxError as error:
        return error.what
    return ""
