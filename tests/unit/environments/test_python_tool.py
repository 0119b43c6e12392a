"""The tool {python: ...}: a session of each episode in a box of its own."""

import os
from collections.abc import Mapping
from typing import Any

import pytest
from box_kinds import need
from environment_values import with_environments

from hybridrl.environments.base import Call, EnvironmentSource, Turn
from hybridrl.errors import ConfigError


@pytest.fixture(scope="module", autouse=True)
def boxes() -> None:
    need("bubblewrap", "landlock")


def section(options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"tools": [{"python": options or {}}], "variables": ["HYBRIDRL_LISTED"]}


async def said(source: EnvironmentSource, *codes: Any) -> list[str]:
    """What an episode reads that runs these codes, one in each turn."""
    opened, texts = source.open({}), []
    try:
        await opened.reset(0)
        for code in codes:
            seen = await opened.step(Turn("", calls=(Call("python", {"code": code}, "x"),)))
            texts.append(seen.messages[0]["content"])
        return texts
    finally:
        await opened.close()


def test_a_session_keeps_its_state_and_no_other_episode_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDRL_LISTED", "listed")

    async def play(source: EnvironmentSource) -> Any:
        first = await said(source, "x = 41", "x + 1", "open('note', 'w').write('n')", "1 / 0", 3)
        second = await said(
            source,
            "'x' in globals()",
            "import os; os.path.exists('note'), sorted(os.environ).count('HYBRIDRL_LISTED')",
            "import socket; socket.create_connection(('127.0.0.1', 22), 1)",
            f"os.kill({os.getpid()}, 9)",
        )
        return first, second

    first, second = with_environments(section(), play)
    assert first[:3] == ["", "42", "1"] and "ZeroDivisionError" in first[3]
    assert first[4].startswith("Error: wrong arguments")
    assert second[:2] == ["False", "(False, 0)"]
    assert "Error" in second[2] and ("Error" in second[3])


def test_a_call_that_takes_too_long_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDRL_LISTED", "listed")
    play = lambda source: said(source, "x = 1", "while True: pass", "x")
    _, hung, after = with_environments(section({"timeout_s": 0.5}), play)
    assert "limit of time" in hung and after == "1"


def test_options_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDRL_LISTED", "listed")
    with pytest.raises(ConfigError, match="tool python has no option 'timeout'; did you mean|has no option"):
        with_environments(section({"timeout": 3}), said)
