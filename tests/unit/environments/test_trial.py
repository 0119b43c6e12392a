"""What `hybridrl environment check` finds in environments that have one fault each."""

import asyncio
from typing import Any

import pytest

from hybridrl.config.environment import EnvironmentConfig
from hybridrl.environments.hosting import open_environments
from hybridrl.environments.trial import Finding, try_environment

KEYS = {"reset_timeout_s": 60.0, "step_timeout_s": 60.0}


def findings(name: str, episodes: int = 40, **keys: float) -> dict[str, Finding]:
    async def run() -> list[Finding]:
        section = EnvironmentConfig.model_validate({"name": f"odd_environments:{name}", **KEYS, **keys})
        source = open_environments(section)
        await source.start()
        try:
            deadlines: Any = {"reset": 60.0, "step": 60.0}
            rows = [{"prompt": "a b c"}]
            found = try_environment(source, rows, episodes=episodes, deadlines=deadlines)
            return [finding async for finding in found]
        finally:
            await source.close()

    return {finding.kind: finding for finding in asyncio.run(run())}


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("Dice", {"seeds": "warning"}, "seed 0 differs from itself in turn 1: messages"),
        ("Counts", {"rewards": "warning"}, "these answers all earn the same"),
        ("Fragile", {"empty": "no"}, "8 of 8 episodes failed, the first with seed 0"),
        ("Holds", {"leaks": "warning"}, "files behind in its process"),
    ],
)
def test_each_fault_is_found_and_nothing_else(name: str, wrong: dict[str, str], said: str) -> None:
    found = findings(name)
    assert {kind: finding.verdict for kind, finding in found.items() if finding.verdict != "ok"} == wrong
    (kind,) = wrong
    assert said in found[kind].text


def test_hangs_are_found() -> None:
    found = findings("HangsAtReset", episodes=5, reset_timeout_s=0.3)
    assert found["random"].verdict == "no" and "reset did not return within 0.3 s" in found["random"].text


def test_calls_of_tools_are_tried() -> None:
    found = findings("WithTools", episodes=10)
    assert found["malformed"].verdict == found["random"].verdict == "ok"
