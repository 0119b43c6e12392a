"""Typed functions are tools; whatever the policy does wrong is text for it, counted, and no error."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from environment_values import with_environments
from odd_environments import search, untyped

from hybridrl.environments.base import Call, EnvironmentSource, Observation, Turn
from hybridrl.environments.tools.base import Tool
from hybridrl.environments.tools.calls import Answered, CallRules, answer, calls_in_text, cut_middle
from hybridrl.environments.tools.functions import function_tool
from hybridrl.errors import ConfigError, HybridRLError

RULES = CallRules(
    max_calls=3, max_result_characters=200, timeout_s=0.2, text_calls={}, text_result="<r>{result}</r>"
)


async def sleep(seconds: float) -> str:
    """Sleep."""
    await asyncio.sleep(seconds)
    return "awake"


def fail(copy: str = "", *, schema: int = 0) -> str:
    """Fail. Its parameters have names of pydantic's own."""
    raise KeyError(copy)


def pays(x: int) -> Observation:
    """Pay."""
    return Observation("paid", reward=x, done=x > 1)


def tools() -> dict[str, Tool]:
    found = [function_tool(f, title="tool", where="environment.tools") for f in (search, sleep, fail, pays)]
    return {tool.name: tool for tool in found}


def made(*calls: Call, plain: bool = False, rules: CallRules = RULES) -> Answered:
    return asyncio.run(answer(calls, tools(), rules, plain=plain))


def test_hints_and_docstring_are_the_schema() -> None:
    assert tools()["search"].schema == {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Search a library for a text.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "what to look for."},
                    "limit": {"type": "integer", "description": "most results.", "default": 3},
                },
                "required": ["query"],
                "additionalProperties": False,
            },
        },
    }


def test_results_answer_their_calls_in_order() -> None:
    found = made(Call("search", {"query": "a", "limit": 2}, id="1"), Call("pays", {"x": "2"}, id="2"))
    assert found.messages == (
        {"role": "tool", "tool_call_id": "1", "name": "search", "content": '["a 0", "a 1"]'},
        {"role": "tool", "tool_call_id": "2", "name": "pays", "content": "paid"},
    )
    assert [use.fault for use in found.uses] == ["", ""]
    assert [(one.reward, one.done) for one in found.observations] == [(2, True)]


@pytest.mark.parametrize(
    ("call", "fault", "said"),
    [
        (Call("serch", {}), "unknown", "there is no tool 'serch'; did you mean search?"),
        (Call("x", {}), "unknown", "there are: search, sleep, fail, pays"),
        (Call("", fault="invalid JSON: it ends early"), "unreadable", "cannot be read: invalid JSON"),
        (Call("search", {}), "arguments", "wrong arguments: query: Field required"),
        (Call("search", {"query": "a", "n": 1}), "arguments", "n: Extra inputs are not permitted"),
        (Call("search", {"query": 3}), "arguments", "query: Input should be a valid string"),
        (Call("fail", {"copy": "k"}), "exception", "KeyError: 'k'"),
        (Call("sleep", {"seconds": 60}), "timeout", "sleep did not answer within 0.2 s"),
    ],
)
def test_a_fault_of_the_policy_or_a_tool_is_text(call: Call, fault: str, said: str) -> None:
    found = made(call)
    assert said in found.messages[0]["content"] and found.messages[0]["content"].startswith("Error: ")
    assert [use.fault for use in found.uses] == [fault]


def test_names_that_a_policy_invents_are_one_metric() -> None:
    assert {use.name for use in made(Call("a"), Call("b")).uses} == {"unknown"}


def test_calls_of_a_turn_run_at_the_same_time_up_to_a_number() -> None:
    async def assemble() -> str:
        """Wait for two others."""
        await barrier.wait()
        return "met"

    async def run() -> Answered:
        known = {"assemble": function_tool(assemble, title="tool", where="")}
        return await answer([Call("assemble")] * 4, known, replace(RULES, timeout_s=60), plain=False)

    barrier = asyncio.Barrier(3)
    found = asyncio.run(run())
    assert [use.fault for use in found.uses] == ["", "", "", "too many"]
    assert found.messages[0]["content"] == "met" and "may have 3 calls" in found.messages[3]["content"]


def test_a_tool_may_return_a_picture() -> None:
    picture = {"type": "image", "image": b"encoded"}

    def draws(x: int) -> list[dict[str, Any]]:
        """Draw."""
        return [{"role": "tool", "content": [{"type": "text", "text": "a" * 300}, picture]}]

    own = {"draws": function_tool(draws, title="tool", where="environment.tools")}
    for plain in (False, True):
        done = asyncio.run(answer([Call("draws", {"x": 1}, "a")], own, RULES, plain=plain))
        (message,) = done.messages
        *texts, shown = message["content"][: 3 if plain else 2]
        assert shown == picture and len(texts[-1]["text"]) == 200 and "left out" in texts[-1]["text"]
        assert message["role"] == ("user" if plain else "tool")
        assert [part["text"] for part in message["content"] if "text" in part][0].startswith("<r>" * plain)


def test_long_results_lose_their_middle() -> None:
    text = cut_middle("a" * 500 + "b" * 500, 200)
    assert len(text) == 200 and text[0] == "a" and text[-1] == "b"
    assert "[... 800 characters left out ...]" in text and cut_middle("x" * 200, 200) == "x" * 200
    found = made(Call("search", {"query": "a", "limit": 1000}))
    assert len(found.messages[0]["content"]) == 200


def test_calls_in_plain_text() -> None:
    patterns = {"search": r"<search>(?P<query>.*?)</search>", "pays": r"\[(?P<x>\d)\]"}
    text = "let me see [7] <search>who\nis it</search> [8"
    found = calls_in_text(text, patterns)
    assert [(c.name, c.arguments) for c in found] == [
        ("pays", {"x": "7"}),
        ("search", {"query": "who\nis it"}),
    ]
    assert made(found[0], plain=True).messages == ({"role": "user", "content": "<r>paid</r>"},)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (untyped, "its parameter query has no type hint"),
        (lambda *a: a, "the policy cannot give a"),
        (print, "the policy cannot give"),
        (time.sleep, "Python cannot say what parameters it has"),
    ],
)
def test_what_cannot_be_a_tool_is_refused(function: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        function_tool(function, title="tool t", where="environment.tools")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("odd_environments:untyped", "its parameter query has no type hint, so the policy cannot know"),
        ("odd_environments:sarch", "odd_environments has no 'sarch'"),
        ("search", "which is no tool"),
        ({"pyton": {}}, "which is no tool"),
    ],
)
def test_tools_are_refused_before_an_episode(given: Any, said: str) -> None:
    async def play(source: EnvironmentSource) -> None: ...

    with pytest.raises(HybridRLError) as caught:
        with_environments({"tools": [given]}, play)
    assert said in str(caught.value)


def test_tools_alone_are_an_environment() -> None:
    async def play(source: EnvironmentSource) -> Any:
        names = [tool["function"]["name"] for tool in source.tools({})]
        opened = source.open({})
        await opened.reset(0)
        called = await opened.step(Turn("", calls=(Call("search", {"query": "a", "limit": 1}, id="1"),)))
        ended = await opened.step(Turn("the answer"))
        await opened.close()
        return names, called, ended

    names, called, ended = with_environments({"tools": ["odd_environments:search"]}, play)
    assert names == ["search"] and not called.done and called.messages[0]["content"] == '["a 0"]'
    assert [(use.name, use.fault) for use in called.uses] == [("search", "")]
    assert ended.done and not ended.messages


def test_methods_are_tools_and_calls_that_cannot_be_made_may_end_the_episode() -> None:
    async def play(source: EnvironmentSource) -> Any:
        opened = source.open({})
        await opened.reset(0)
        calls = (Call("add", {"a": 1, "b": 2}), Call("fail"))
        seen = [await opened.step(Turn("", calls=(call,))) for call in calls]
        await opened.close()
        return [tool["function"]["name"] for tool in source.tools({})], seen

    section = {"name": "odd_environments:WithTools", "on_bad_call": "end"}
    names, (added, failed) = with_environments(section, play)
    assert names == ["add", "sleep", "fail"]
    assert added.messages[0]["content"] == "3" and not added.done
    assert "RuntimeError: it is broken" in failed.messages[0]["content"] and failed.done
