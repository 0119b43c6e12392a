"""The endpoint of programs in Anthropic's form, with Anthropic's client."""

import asyncio
from typing import Any

import pytest
from gateway_values import Policy, opened, shown

anthropic = pytest.importorskip("anthropic")

TOOL = {"name": "get", "description": "look", "input_schema": {"type": "object", "properties": {}}}


def play(agent, policy=None):
    """What an agent returns that gets a client, and the conversations that it had."""

    async def run():
        async with opened(policy or Policy()) as (_, session, own):
            client = anthropic.AsyncAnthropic(base_url=session.url, api_key=session.key, max_retries=0)
            async with client as c:
                return await agent(c), own

    return asyncio.run(run())


async def ask(c, messages, stream=False, **more):
    asked = {"model": "policy", "max_tokens": 100, "messages": messages, **more}
    if not stream:
        return await c.messages.create(**asked)
    async with c.messages.stream(**asked) as events:
        return await events.get_final_message()


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_with_a_tool_is_one_stream(stream):
    policy = Policy(lambda text: "I look!get:5" if text.count("<p>") == 1 else "ok")

    async def agent(c):
        history: list[Any] = [{"role": "user", "content": "go"}]
        first = await ask(c, history, stream, system="be good", tools=[TOOL])
        history.append(
            {"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in first.content]}
        )
        (call,) = [block for block in first.content if block.type == "tool_use"]
        result = {"type": "tool_result", "tool_use_id": call.id, "content": f"={call.input['x']}"}
        history.append({"role": "user", "content": [result]})
        second = await ask(c, history, stream, system="be good", tools=[TOOL])
        return first.stop_reason, second.stop_reason, second.content[0].text, second.usage.output_tokens

    found, own = play(agent, policy)
    assert found == ("tool_use", "end_turn", "ok", 3)
    assert [shown(s.tokens) for s in own.streams] == ["1<s>be good<u>go<p>I look!get:5.<t>=5<p>ok."]
    assert not own.branches


def test_thinking_is_a_block_that_may_be_dropped():
    policy = Policy(lambda text: "hm~yes")

    async def agent(c):
        history: list[Any] = [{"role": "user", "content": "a"}]
        first = await ask(c, history)
        history += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "b"}]
        await ask(c, history)
        return [block.type for block in first.content]

    kinds, own = play(agent, policy)
    assert kinds == ["thinking", "text"] and len(own.streams) == 1 and not own.branches


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tool_choice": {"type": "any"}, "tools": [TOOL]}, "would need a grammar"),
        ({"stop_sequences": ["x"]}, "stop_sequences is not supported"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "url", "url": "http://x/a.png"}}],
                    }
                ]
            },
            "has image, which the policy cannot read",
        ),
    ],
)
def test_what_trained_tokens_cannot_have_is_refused(change, text):
    async def agent(c):
        with pytest.raises(anthropic.BadRequestError, match=text):
            asked = {"messages": [{"role": "user", "content": "a"}], **change}
            await c.messages.create(model="m", max_tokens=5, **asked)

    _, own = play(agent)
    assert not own.streams


def test_a_wrong_key_is_refused():
    async def agent(c):
        with pytest.raises(anthropic.AuthenticationError, match="not the key"):
            await ask(c.with_options(api_key="other"), [{"role": "user", "content": "a"}])

    play(agent)


def test_an_answer_that_fills_its_limit_says_so():
    async def agent(c):
        found = await c.messages.create(model="m", max_tokens=2, messages=[{"role": "user", "content": "a"}])
        return found.stop_reason, found.usage.output_tokens

    assert play(agent)[0] == ("max_tokens", 2)
