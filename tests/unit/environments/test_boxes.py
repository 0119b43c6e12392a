"""Environments whose episodes have a box of the sandbox."""

import asyncio
from typing import Any

import pytest
from box_kinds import need
from environment_values import episode, with_environments

from hybridrl.environments.boxes import started
from hybridrl.environments.tools.base import LostToolError
from hybridrl.errors import HybridRLError, ResourceError
from hybridrl.sandbox.box import Box

SHELL = "odd_environments:Shell"


def test_each_episode_has_a_box_of_its_own() -> None:
    need("bubblewrap", "landlock")

    async def play(source: Any) -> Any:
        first = await episode(source, "open('note', 'w').write('n')", "open('note').read()")
        return first + await episode(source, "import os; os.path.exists('note')")

    seen = with_environments({"name": SHELL, "box": {"memory_mb": 256}}, play)
    texts = [one.messages[0]["content"] for one in seen if one.messages]
    assert texts == ["a shell", "1", "'n'", "a shell", "False"]


class NoSandbox:
    """A machine that refuses every kind of box."""

    async def start(self) -> None:
        raise ResourceError("no box can be made here: no user namespaces", fix="allow user namespaces")

    async def take(self) -> Box:
        raise LostToolError("no box")

    async def close(self) -> None:
        return None


def test_a_machine_without_boxes_is_refused_with_the_change() -> None:
    with pytest.raises(
        ResourceError, match="environment.box asks for a box of each episode: no box"
    ) as refused:
        asyncio.run(started(NoSandbox(), where="environment"))
    assert refused.value.fix == "allow user namespaces, or leave environment.box out"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"name": SHELL, "box": {"sandbox": "tcp://127.0.0.1:9"}}, "environment.box"),
        ({"tools": ["odd_environments:search"], "box": True}, "environment has tools alone"),
    ],
)
def test_what_cannot_be_is_refused_before_an_episode(section: dict[str, Any], said: str) -> None:
    with pytest.raises(HybridRLError, match=said):
        with_environments(section, episode)
