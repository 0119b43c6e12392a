"""The endpoint of programs over real HTTP: OpenAI's client, keys, limits, streams, repetitions."""

import asyncio
import json

import aiohttp
import openai
import pytest
from gateway_values import Policy, conversations, opened
from openai import AsyncOpenAI

from hybridrl.errors import EngineLostError
from hybridrl.rollout.streams import block_of

TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties": {}}}}


def client(session, **more):
    return AsyncOpenAI(
        base_url=f"{session.url}/v1", api_key=session.key, **{"max_retries": 0, "timeout": 10.0, **more}
    )


def play(agent, policy=None, **limits):
    """What an agent returns that gets a client, and the conversations that it had."""

    async def run():
        async with opened(policy or Policy(), **limits) as (gateway, session, own):
            return await agent(gateway, session), own

    return asyncio.run(run())


async def three_turns(c, stream=False, tools=()):
    """An agent that answers calls with =x and ends after three answers; its last history."""
    history = [{"role": "user", "content": "go"}]
    for i in range(3):
        asked = {"model": "policy", "messages": history, **({"tools": list(tools)} if tools else {})}
        message = await (_streamed(c, asked) if stream else _whole(c, asked))
        history.append(message)
        for call in message.get("tool_calls", ()):
            content = f"={json.loads(call['function']['arguments'])['x']}"
            history.append({"role": "tool", "tool_call_id": call["id"], "content": content})
        if not message.get("tool_calls"):
            history.append({"role": "user", "content": f"more {i}"})
    return history


async def _whole(c, asked):
    found = await c.chat.completions.create(**asked)
    return found.choices[0].message.model_dump(exclude_none=True)


async def _streamed(c, asked):
    text, calls, last = "", [], None
    async for chunk in await c.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        last = chunk
        for choice in chunk.choices:
            text += choice.delta.content or ""
            calls += [call.model_dump(exclude={"index"}) for call in choice.delta.tool_calls or ()]
    assert last is not None and last.usage.completion_tokens > 0
    return {"role": "assistant", "content": text or None, **({"tool_calls": calls} if calls else {})}


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_of_openais_client_is_one_stream(stream):
    policy = Policy(lambda text: "!get:5" if text.count("<p>") == 1 else "ok")

    async def agent(gateway, session):
        async with client(session) as c:
            return await three_turns(c, stream, [TOOL])

    history, own = play(agent, policy)
    assert [message["role"] for message in history] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert len(own.streams) == 1 and not own.branches and own.num_answers == 3
    block = block_of(own.streams)
    assert int(block.loss_mask_T.sum()) == sum(len(t.answer.token_T) for t in own.streams[0].turns)


def test_sixty_agents_at_once_each_have_their_own_stream():
    async def run():
        async with opened(Policy(delay_s=0.002)) as (gateway, session, own):
            sessions = [gateway.open(conversations(Policy(delay_s=0.002))) for _ in range(60)]

            async def one(i):
                async with client(sessions[i]) as c:
                    await three_turns(c, stream=i % 2 == 0)

            await asyncio.gather(*map(one, range(60)))
            return [s.conversations for s in sessions]

    found = asyncio.run(run())
    assert [(len(own.streams), own.num_answers) for own in found] == [(1, 3)] * 60


def test_a_client_that_gives_up_and_repeats_is_sampled_once():
    policy = Policy(delay_s=0.3)

    async def agent(gateway, session):
        async with client(session, timeout=0.2, max_retries=3) as c:
            return (await _whole(c, {"model": "m", "messages": [{"role": "user", "content": "a"}]}))[
                "content"
            ]

    said, own = play(agent, policy)
    assert said == "re 1" and len(policy.asked) == 1 and own.repeated >= 1


def test_an_agent_that_compacts_its_history_trains_every_answer_once():
    async def agent(gateway, session):
        async with client(session) as c:
            await three_turns(c)
            await _whole(c, {"model": "m", "messages": [{"role": "user", "content": "summary of it"}]})

    _, own = play(agent)
    assert own.branches == {"new": 1} and own.num_answers == 4
    assert int(block_of(own.streams).loss_mask_T.sum()) == 4 * len("re 1.")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"n": 2}, "n = 2 is not supported: one answer"),
        ({"logit_bias": {"5": 1}}, "logit_bias = .* is not supported"),
        ({"response_format": {"type": "json_object"}}, "no grammar"),
        ({"tool_choice": "required", "tools": [TOOL]}, "would need a grammar"),
        ({"extra_body": {"guided_regex": "a+"}}, "no grammar"),
        ({"logprobs": True}, "keeps the log-probabilities"),
        ({"stop": ["x"]}, "rollout.stop"),
        ({"frequency_penalty": 0.5}, "at the temperature of the run"),
        ({"max_tokens": 0}, "max_tokens = 0 is below 1"),
        ({"messages": []}, "messages is no list"),
        ({"messages": [{"role": "robot", "content": ""}]}, r"messages\[0\] has no role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "content that is no text",
        ),
    ],
)
def test_what_trained_tokens_cannot_have_is_refused_with_the_reason(change, text):
    async def agent(gateway, session):
        async with client(session) as c:
            asked = {"model": "m", "messages": [{"role": "user", "content": "a"}], **change}
            with pytest.raises(openai.BadRequestError, match=text):
                await c.chat.completions.create(**asked)

    _, own = play(agent)
    assert not own.streams


def test_sampling_options_of_a_client_change_nothing():
    policy = Policy()

    async def agent(gateway, session):
        async with client(session) as c:
            asked = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
            first = await _whole(c, asked)
            return first == await _whole(c, {**asked, "temperature": 0, "top_p": 0.5})

    same, own = play(agent, policy)
    assert same and own.repeated == 1


def test_limits_of_an_answer_are_those_of_the_client_if_they_are_lower():
    async def agent(gateway, session):
        async with client(session) as c:
            found = await c.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "a"}], max_completion_tokens=2
            )
            assert found.usage is not None
            return found.choices[0].finish_reason, found.usage.completion_tokens

    assert play(agent)[0] == ("length", 2)


def test_nobody_answers_without_the_key_of_the_episode():
    async def agent(gateway, session):
        other = gateway.open(session.conversations)
        asked = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
        for key in ("", "hy-wrong", other.key):
            async with AsyncOpenAI(base_url=f"{session.url}/v1", api_key=key or "x", max_retries=0) as c:
                with pytest.raises(openai.AuthenticationError, match="not the key"):
                    await c.chat.completions.create(**asked)
        gateway.end(session)
        async with client(session) as c:
            with pytest.raises(openai.NotFoundError, match="has ended"):
                await c.chat.completions.create(**asked)

    _, own = play(agent)
    assert not own.streams


def test_models_are_listed():
    async def agent(gateway, session):
        async with client(session) as c:
            return [model.id async for model in c.models.list()], (await c.models.retrieve("any/name")).id

    assert play(agent)[0] == (["policy"], "policy")


def test_a_request_too_many_is_told_to_come_again_and_does():
    policy = Policy(delay_s=0.1)

    async def agent(gateway, session):
        async def ask(c, text):
            return await _whole(c, {"model": "m", "messages": [{"role": "user", "content": text}]})

        async with client(session) as c:
            first = asyncio.create_task(ask(c, "a"))
            await asyncio.sleep(0.05)
            with pytest.raises(openai.RateLimitError) as caught:
                await ask(c, "b")
            await first
        async with client(session, max_retries=2) as patient:
            await asyncio.gather(ask(patient, "c"), ask(patient, "d"))
        return caught.value.response.headers["retry-after"]

    after, own = play(agent, policy, max_running=1)
    assert after == "1" and own.num_answers == 3


def test_a_body_of_a_megabyte_is_read_and_a_larger_one_is_refused():
    async def agent(gateway, session):
        async with client(session) as c:
            asked = {"model": "m", "messages": [{"role": "user", "content": "a" * 50_000}]}
            await _whole(c, asked)
            with pytest.raises(openai.APIStatusError, match="too large") as caught:
                await _whole(c, {"model": "m", "messages": [{"role": "user", "content": "b" * 70_000}]})
            return caught.value.status_code

    status, own = play(agent, max_body_bytes=1 << 16, context=1 << 20)
    assert status == 413 and own.num_answers == 1


def test_done_ends_the_episode_with_a_reward():
    async def post(session, body):
        headers = {"Authorization": f"Bearer {session.key}"}
        async with aiohttp.ClientSession(headers=headers) as http:
            async with http.post(f"{session.url}/v1/done", data=json.dumps(body)) as response:
                return response.status, await response.json()

    async def agent(gateway, session):
        refused = await post(session, {"reward": "much"})
        accepted = await post(session, {"reward": 0.5, "metrics": {"solved": True}})
        return refused, accepted, await session.ended

    (refused, accepted, ending), _ = play(agent)
    assert refused[0] == 400 and "reward = 'much' is no finite number" in refused[1]["error"]["message"]
    assert accepted == (200, {"done": True}) and ending.reward == 0.5 and ending.metrics == {"solved": 1.0}


def test_a_failure_of_the_engine_reaches_the_episode():
    policy = Policy(fails=EngineLostError("engine 0 ended"))

    async def agent(gateway, session):
        async with client(session) as c:
            with pytest.raises(openai.InternalServerError, match="engine 0 ended"):
                await _whole(c, {"model": "m", "messages": [{"role": "user", "content": "a"}]})
        with pytest.raises(EngineLostError):
            await session.ended

    play(agent, policy)


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff" * 10, b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(body):
    async def agent(gateway, session):
        headers = {"Authorization": f"Bearer {session.key}"}
        async with aiohttp.ClientSession(headers=headers) as http:
            async with http.post(f"{session.url}/v1/chat/completions", data=body) as response:
                return response.status

    assert play(agent)[0] == 400
