"""Tools of real MCP servers, over stdio and HTTP."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from environment_values import with_environments
from loopback_server import served

from hybridrl.environments.base import Call, EnvironmentFailedError, EnvironmentSource, Turn
from hybridrl.errors import HybridRLError

pytest.importorskip("mcp", reason="requirements/agents.txt is not installed")

SERVER = str(Path(__file__).parents[2] / "support" / "mcp_calculator.py")
STDIO = {"command": [sys.executable, SERVER]}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(sys.executable, SERVER) as port:
        yield f"http://127.0.0.1:{port}/mcp"


async def called(source: EnvironmentSource, *calls: Call) -> Any:
    opened = source.open({})
    try:
        await opened.reset(0)
        return await opened.step(Turn("", calls=calls))
    finally:
        await opened.close()


def check(source_of: dict[str, Any]) -> None:
    async def play(source: EnvironmentSource) -> Any:
        names = [tool["function"]["name"] for tool in source.tools({})]
        adds = [Call("add", {"a": i, "b": 1}) for i in range(8)]
        wrong = [Call("add", {"a": "x"}), Call("fail", {"text": "t"})]
        return names, source.tools({})[0], await called(source, *adds, *wrong)

    names, add, seen = with_environments({"tools": [{"mcp": source_of}]}, play)
    assert names == ["add", "fail", "leave", "variable"]
    assert add["function"]["description"] == "Add two integers."
    assert add["function"]["parameters"]["required"] == ["a", "b"]
    texts = [message["content"] for message in seen.messages]
    assert texts[:8] == [str(i + 1) for i in range(8)]
    assert [use.fault for use in seen.uses] == [""] * 8 + ["exception"] * 2
    assert "valid integer" in texts[8] and texts[9] == "Error: Error executing tool fail"


def test_tools_over_stdio() -> None:
    check(STDIO)


@pytest.mark.slow
def test_tools_over_http(address: str) -> None:
    check({"url": address})


@pytest.mark.slow
def test_a_server_that_ends_costs_its_episode_and_is_started_again() -> None:
    async def play(source: EnvironmentSource) -> Any:
        with pytest.raises(EnvironmentFailedError) as caught:
            await asyncio.wait_for(called(source, Call("leave")), 60)
        return caught.value, await called(source, Call("add", {"a": 1, "b": 2}))

    failed, seen = with_environments({"tools": [{"mcp": STDIO}]}, play)
    assert "mcp_calculator.py is gone" in str(failed) and failed.reason == "raised"
    assert seen.messages[0]["content"] == "3"


@pytest.mark.slow
def test_a_server_sees_listed_variables_and_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDRL_SECRET", "s")
    monkeypatch.setenv("HYBRIDRL_LISTED", "l")
    names = ("HYBRIDRL_SECRET", "HYBRIDRL_LISTED", "HYBRIDRL_OWN")
    tools = [{"mcp": STDIO | {"env": {"HYBRIDRL_OWN": "o"}, "only": ["variable"]}}]
    seen = with_environments(
        {"tools": tools, "variables": ["HYBRIDRL_LISTED"]},
        lambda source: called(source, *(Call("variable", {"name": name}) for name in names)),
    )
    assert [message["content"] for message in seen.messages] == ["unset", "l", "o"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"command": [sys.executable, "-c", "pass"]}, "did not start: MCPError: Connection closed"),
        ({"command": ["hybridrl-absent-program"]}, "No such file"),
        ({"url": "http://127.0.0.1:9/mcp"}, "did not start"),
        (
            {"command": [sys.executable, "-c", "import time; time.sleep(99)"], "start_timeout_s": 0.5},
            "it did not answer within 0.5 s",
        ),
        pytest.param(STDIO | {"only": ["sub"]}, "has no tool 'sub'", marks=pytest.mark.slow),
        ({}, "give either command, to start a server, or url"),
        ({"comand": ["x"]}, "has no option 'comand'"),
    ],
)
def test_a_server_that_cannot_be_used_is_refused(given: dict[str, Any], said: str) -> None:
    async def play(source: EnvironmentSource) -> None: ...

    with pytest.raises(HybridRLError) as caught:
        with_environments({"tools": [{"mcp": given}]}, play)
    assert said in str(caught.value)
