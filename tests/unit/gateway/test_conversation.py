"""Requests of a program become token streams: what is continued, what opens a branch and why, what is trained
once, and what a repetition gets."""

import asyncio

import numpy as np
import pytest
from gateway_values import Policy, conversations, shown
from hypothesis import given
from hypothesis import strategies as st

from hybridrl.gateway.requests import Asked, RefusedError
from hybridrl.rollout.streams import block_of


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def talk(own, *histories, tools=()):
    """The answers to some requests, one after the other."""

    async def run():
        return [await own.answer(Asked(list(history), tools)) for history in histories]

    return asyncio.run(run())


def continued(policy, own, *texts):
    """A conversation with these messages of the user, whose history is sent back as it was handed out."""

    async def run():
        history = []
        for text in texts:
            history.append(user(text))
            history.append((await own.answer(Asked(list(history)))).message)
        return history

    return asyncio.run(run())


def texts(own):
    return [shown(stream.tokens) for stream in own.streams]


def trained(own):
    """What is trained on of each stream, as text."""
    block = block_of(own.streams)
    rows = [block.row(i) for i in range(len(own.streams))]
    return [shown(block.token_T[row][block.loss_mask_T[row]].tolist()) for row in rows]


def test_a_history_that_comes_back_as_it_was_handed_out_continues_its_stream():
    policy = Policy()
    own = conversations(policy)
    continued(policy, own, "a", "b", "c")
    assert texts(own) == ["<u>a<p>re 1.<u>b<p>re 2.<u>c<p>re 3."]
    assert trained(own) == ["re 1.re 2.re 3."]
    assert policy.asked == ["<u>a<p>", "<u>a<p>re 1.<u>b<p>", "<u>a<p>re 1.<u>b<p>re 2.<u>c<p>"]
    assert not own.branches and own.num_answers == 3


def test_thinking_that_a_client_drops_stays_in_the_stream():
    policy = Policy(lambda text: "hm~yes")
    own = conversations(policy)
    history = continued(policy, own, "a")
    assert history[1] == {"role": "assistant", "content": "yes", "reasoning_content": "hm"}
    del history[1]["reasoning_content"]
    talk(own, [*history, user("b")])
    assert texts(own) == ["<u>a<p>hm~yes.<u>b<p>hm~yes."] and not own.branches


def test_a_repeated_request_gets_the_stored_answer():
    policy = Policy()
    own = conversations(policy)
    first, again = talk(own, [user("a")], [user("a")])
    assert first is again and len(policy.asked) == 1 and own.repeated == 1


def test_a_request_that_is_repeated_while_it_is_answered_is_sampled_once():
    policy = Policy(delay_s=0.01)
    own = conversations(policy)

    async def run():
        return await asyncio.gather(*(own.answer(Asked([user("a")])) for _ in range(5)))

    found = asyncio.run(run())
    assert len(policy.asked) == 1 and len({id(one) for one in found}) == 1


def test_a_client_that_hangs_up_gets_its_answer_when_it_comes_back():
    policy = Policy(delay_s=0.02)
    own = conversations(policy)

    async def run():
        waiting = asyncio.create_task(own.answer(Asked([user("a")])))
        await asyncio.sleep(0.005)
        waiting.cancel()
        await asyncio.sleep(0)
        return await own.answer(Asked([user("a")]))

    assert asyncio.run(run()).text == "re 1" and len(policy.asked) == 1


def test_requests_that_differ_in_their_seed_are_answered_independently():
    policy = Policy()
    own = conversations(policy)

    async def run():
        for seed in (1, 2, 1):
            await own.answer(Asked([user("a")], seed=seed))

    asyncio.run(run())
    assert len(policy.asked) == 2 and len(set(policy.seeds)) == 2
    assert trained(own) == ["re 1.", "re 1."] and own.repeated == 1


def test_the_seed_of_an_answer_does_not_depend_on_the_order_of_requests():
    def seeds(order):
        policy = Policy()
        talk(conversations(policy), *([user(text)] for text in order))
        return dict(zip(order, policy.seeds, strict=True))

    assert seeds("abc") == seeds("cab")


def test_a_rewound_conversation_shares_its_tokens_and_trains_them_once():
    policy = Policy()
    own = conversations(policy)
    history = continued(policy, own, "a", "b")
    talk(own, [*history[:2], user("other")])
    assert texts(own) == ["<u>a<p>re 1.<u>b<p>re 2.", "<u>a<p>re 1.<u>other<p>re 2."]
    assert trained(own) == ["re 1.re 2.", "re 2."]
    assert own.branches == {"rewound": 1}


def test_two_requests_that_continue_an_answer_at_the_same_time_are_two_branches():
    policy = Policy(delay_s=0.01)
    own = conversations(policy)
    history = continued(policy, own, "a")

    async def run():
        await asyncio.gather(*(own.answer(Asked([*history, user(text)])) for text in "bc"))

    asyncio.run(run())
    assert texts(own) == ["<u>a<p>re 1.<u>b<p>re 2.", "<u>a<p>re 1.<u>c<p>re 2."]
    assert trained(own) == ["re 1.re 2.", "re 2."] and own.branches == {"rewound": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h: [h[0], {"role": "assistant", "content": "mine"}, *h[2:], user("c")], "edited"),
        (lambda h: [h[0], user("summary: b was discussed")], "compacted"),
        (lambda h: [system("other"), user("c")], "new"),
        (lambda h: [*h, {"role": "assistant", "content": "prefilled"}, user("c")], "edited"),
    ],
)
def test_another_history_opens_a_branch_with_its_reason(change, reason):
    policy = Policy()
    own = conversations(policy)
    history = continued(policy, own, "a", "b")
    talk(own, change(history))
    assert own.branches == {reason: 1} and len(own.streams) == 2
    assert trained(own)[0] == "re 1.re 2." and trained(own)[1].startswith("re ")


def test_other_tools_open_a_branch():
    policy = Policy()
    own = conversations(policy)
    history = continued(policy, own, "a")
    talk(own, [*history, user("b")], tools=({"type": "function", "function": {"name": "f"}},))
    assert own.branches == {"tools": 1}


def test_calls_of_tools_have_ids_and_come_back():
    policy = Policy(lambda text: "I look!get:7!bad" if text.count("<p>") == 1 else "seven")
    own, tools = conversations(policy), ({"type": "function", "function": {"name": "get"}},)
    (given,) = talk(own, [user("a")], tools=tools)
    (call,) = given.message["tool_calls"]
    assert call["function"] == {"name": "get", "arguments": '{"x": "7"}'} and call["id"].startswith("call_")
    assert given.text == "I look\n!bad"  # a call that cannot be read stays text
    result = {"role": "tool", "tool_call_id": call["id"], "content": "=7"}
    talk(own, [user("a"), given.message, result], tools=tools)
    assert texts(own) == ["1<u>a<p>I look!get:7!bad.<t>=7<p>seven."] and not own.branches


def test_a_conversation_that_fills_the_context_is_refused_and_the_episode_goes_on():
    policy = Policy()
    own = conversations(policy, context=12)
    (given,) = talk(own, [user("a")])
    assert given.turn.finish == "stop" and given.answer_tokens == 5
    with pytest.raises(RefusedError, match="no room for an answer") as caught:
        talk(own, [user("a"), given.message, user("b")])
    assert caught.value.code == "context_length_exceeded"
    talk(own, [user("ab")])
    assert trained(own) == ["re 1.", "re 1"]


def test_more_requests_than_allowed_are_refused_and_repetitions_are_not():
    own = conversations(Policy(), requests=2)
    talk(own, [user("a")], [user("b")], [user("a")])
    with pytest.raises(RefusedError, match="max_requests = 2"):
        talk(own, [user("c")])


def test_a_conversation_that_ends_with_an_answer_is_refused():
    policy = Policy()
    own = conversations(policy)
    history = continued(policy, own, "a")
    with pytest.raises(RefusedError, match="ends with an answer of the policy"):
        talk(own, history)


STEPS = st.lists(
    st.tuples(st.sampled_from(["go on", "rewind", "edit", "repeat"]), st.integers(0, 9)), max_size=14
)


@given(steps=STEPS)
def test_every_sampled_token_is_trained_on_once_with_its_own_logp(steps):
    """Whatever a program does with its history."""
    policy = Policy(lambda text: f"{len(text)}")
    own, histories, last = conversations(policy), [[]], [user("x")]

    async def run():
        nonlocal last
        for action, number in [("go on", 0), *steps]:
            history = histories[number % len(histories)]
            if action == "edit" and history:
                history = [*history[:-1], {"role": "assistant", "content": f"e{number}"}]
            asked = last if action == "repeat" else [*history, user(f"{number}")]
            if action == "go on":
                asked = [*histories[-1], user(f"{number}")]
            answer = await own.answer(Asked(asked))
            histories.append([*asked, answer.message])
            last = asked

    asyncio.run(run())
    block = block_of(own.streams)
    sampled = sum(stream_tokens(stream) for stream in own.streams)
    assert int(block.loss_mask_T.sum()) == sampled
    assert sampled == sum(len(policy.say(text)) + 1 for text in policy.asked)
    expected = -0.01 * block.token_T.astype(np.float32)
    np.testing.assert_allclose(
        block.columns["rollout_logp"], np.where(block.loss_mask_T, expected, 0), rtol=1e-6
    )
    for i, stream in enumerate(own.streams):  # each request was the beginning of a stream
        assert shown(block.token_T[block.row(i)].tolist()) == shown(stream.tokens)
    assert all(any(text == whole[: len(text)] for whole in texts(own)) for text in policy.asked)


def stream_tokens(stream):
    return sum(len(turn.answer.token_T) for turn in stream.turns)
