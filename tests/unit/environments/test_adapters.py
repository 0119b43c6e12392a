"""The adapters against the real packages: episodes with held seeds are the same each time, also at once."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from environment_values import with_environments
from loopback_server import served

from hybridrl.environments.base import EnvironmentSource, Observation, Turn
from hybridrl.errors import HybridRLError

ROOT = Path(__file__).parents[3]
OPENENV_PYTHON = ROOT / ".venv-openenv" / "bin" / "python"
"""OpenEnv's server has an environment of its own: requirements/openenv.txt."""

FROZEN_LAKE = {"name": "gymnasium", "id": "FrozenLake-v1", "actions": ["left", "down", "right", "up"]}
GUESS = {"name": "gem", "id": "game:GuessTheNumber-v0-easy"}
TIC_TAC_TOE = {"name": "textarena", "id": "TicTacToe-v0", "players": 2}
KUHN = {"name": "textarena", "id": "KuhnPoker-v0", "players": 2}

WORDS: dict[str, list[str]] = {
    "gymnasium": FROZEN_LAKE["actions"],
    "gem": [rf"\boxed{{{n}}}" for n in range(1, 11)],
    "textarena": [f"[{n}]" for n in range(9)],
    "openenv": [str(n) for n in range(10)],
}


async def played(source: EnvironmentSource, seed: int, words: list[str], most: int = 12) -> list[Observation]:
    """An episode in which the policy says words at random, from the seed."""
    draw, opened = random.Random(f"policy {seed}"), source.open({})
    try:
        seen = [await opened.reset(seed)]
        while not seen[-1].done and len(seen) <= most:
            seen.append(await opened.step(Turn(draw.choice(words), agent=seen[-1].agent)))
        return seen
    finally:
        await opened.close()


def equal_twice(section: dict[str, Any], *, episodes: int) -> list[list[Observation]]:
    """Episodes, after a check that they are the same one after the other and all at once, and all closed."""

    async def play(source: EnvironmentSource) -> Any:
        words = WORDS[section["name"]]
        together = await asyncio.gather(*(played(source, seed, words) for seed in range(episodes)))
        alone = [await played(source, seed, words) for seed in range(episodes)]
        await source.close()
        return together, alone, source.usage()

    together, alone, usage = with_environments(section, play)
    assert together == alone and usage.closed == 2 * episodes and not usage.failures
    assert len({str(seen) for seen in together}) > episodes // 10  # seeds differ
    return together


def counted_episodes(count: int) -> Any:
    return pytest.mark.parametrize("episodes", [8, pytest.param(count, marks=pytest.mark.slow)])


SLOW = pytest.mark.parametrize("episodes", [pytest.param(100, marks=pytest.mark.slow)])


@counted_episodes(100)
def test_gymnasium(episodes: int) -> None:
    pytest.importorskip("gymnasium")
    found = equal_twice(FROZEN_LAKE, episodes=episodes)
    assert found[0][0].messages[0]["content"] == "0" and found[0][0].anchor == "0"
    assert all(0 <= int(seen.anchor or 0) < 16 for episode in found for seen in episode)


@counted_episodes(100)
def test_gem(episodes: int) -> None:
    pytest.importorskip("gem")
    found = equal_twice(GUESS, episodes=episodes)
    assert "Guess The Number" in found[0][0].messages[0]["content"]
    assert any(seen.reward == 1 for episode in found for seen in episode)


@SLOW
def test_textarena(episodes: int) -> None:
    pytest.importorskip("textarena")
    found = equal_twice(TIC_TAC_TOE, episodes=episodes)
    assert {seen.agent for seen in found[0]} == {0, 1}
    ends = [episode[-1] for episode in found if episode[-1].done]
    assert ends and all(set(end.rewards) <= {0, 1} - {end.agent} for end in ends)


def test_players_of_textarena_read_what_is_new_to_them() -> None:
    pytest.importorskip("textarena")

    async def play(source: EnvironmentSource) -> list[Observation]:
        opened = source.open({})
        seen = [await opened.reset(3)]
        for text in ("[bet]", "[fold]"):
            seen.append(await opened.step(Turn(text, agent=seen[-1].agent)))
        await opened.close()
        return seen

    opening, answered, _ = with_environments(KUHN, play)
    assert opening.agent != answered.agent
    text = answered.messages[0]["content"]
    assert "Kuhn Poker" in text and "bet" in text  # its own opening, and what the other did


@pytest.fixture(scope="module")
def openenv() -> Iterator[str]:
    if not OPENENV_PYTHON.exists():
        pytest.skip(f"{OPENENV_PYTHON.parent.parent.name} is not there: make test-all makes it")
    with served(OPENENV_PYTHON, Path(__file__).with_name("openenv_number.py")) as port:
        yield f"http://127.0.0.1:{port}"


@SLOW
def test_openenv(openenv: str, episodes: int) -> None:
    pytest.importorskip("websockets")
    section = {"name": "openenv", "url": openenv, "observation": "text"}
    found = equal_twice(section, episodes=episodes)
    assert found[0][0].messages[0]["content"] == "Guess."
    assert any(seen.reward == 1 and seen.done for episode in found for seen in episode)


@pytest.mark.slow
def test_an_action_is_read_out_of_an_answer(openenv: str) -> None:
    pytest.importorskip("websockets")

    async def play(source: EnvironmentSource) -> list[Observation]:
        opened = source.open({})
        await opened.reset(3)
        seen = [await opened.step(Turn(text)) for text in ("hm", "I say <action> 3 </action>")]
        await opened.close()
        return seen

    pattern = "<action>(.*?)</action>"
    section = {"name": "openenv", "url": openenv, "observation": "text", "pattern": pattern}
    told, answered = with_environments(section, play)
    assert pattern in told.messages[0]["content"] and told.metrics == {"illegal": 1}
    assert answered.messages[0]["content"] in ("higher", "lower", "")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"name": "gymnasium"}, "needs the option id"),
        (FROZEN_LAKE | {"on_illegal": "laugh"}, "on_illegal = laugh"),
        ({"name": "openenv", "url": "localhost"}, "which is no address"),
    ],
)
def test_options_are_checked(section: dict[str, Any], said: str) -> None:
    async def play(source: EnvironmentSource) -> None: ...

    pytest.importorskip("gymnasium")
    with pytest.raises(HybridRLError) as caught:
        with_environments(section, play)
    assert said in str(caught.value)
