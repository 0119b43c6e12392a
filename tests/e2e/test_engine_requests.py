"""One request at a time to real engines of every kind: the answer, an early end, a pause, and a
swap of weights while it runs.

One engine of a kind for all tests of this file; each leaves it serving the first model's weights or others.
"""

import asyncio

import numpy as np
import pytest
import torch
from engine_values import (
    TOLERANCE,
    answer,
    engine_weights,
    hf_logp,
    prompts,
    responses,
    sampling,
    write,
)

from hybridrl.errors import EngineError
from hybridrl.rollout.base import Request

LONG = 900
"""Tokens: a second of a request alone at least."""

UNENDING = {"eos_token_id": None, "max_position_embeddings": 1024}
"""Without an end token every answer has as many tokens as it may have."""


@pytest.fixture(scope="module")
def first(kind):
    return kind.model(1, **UNENDING)


@pytest.fixture(scope="module")
def engine(kind, first, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    first.save_pretrained(folder)
    engine = kind.engine(folder, max_response_tokens=LONG)
    yield engine
    engine.shutdown()


def request(prompt, id=None, arrays=None, **options):
    return Request(
        id=id or prompt.uid, token_ids=prompt.token_ids, sampling=sampling(**options), arrays=arrays or {}
    )


def unending(seed=0, **options):
    """A request that takes long."""
    given = {"max_response_tokens": LONG, "temperature": 2.0, "seed": 9}
    return request(prompts(1, seed=seed)[0], **given | options)


def largest_difference(found, asked, models):
    """Between an answer's log-probabilities and those of the model that each token's version names."""
    tokens, prompt = [*asked.token_ids, *found.token_T.tolist()], len(asked.token_ids)
    expected = {v: hf_logp(m, tokens, asked.sampling.temperature)[prompt:] for v, m in models.items()}
    logp = torch.stack([expected[v][i] for i, v in enumerate(found.version_T.tolist())])
    return float((torch.from_numpy(found.logp_T) - logp).abs().max())


async def until_it_samples():
    await asyncio.sleep(0.25)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_a_request_is_answered_as_the_batched_call_answers_it(engine, temperature):
    asked = prompts(6)
    trajectories, block = answer(engine, asked, sampling(temperature=temperature))

    async def one_by_one():
        requests = [request(prompt, temperature=temperature, seed=11 + i) for i, prompt in enumerate(asked)]
        alone = [await engine.request(one) for one in requests]
        return alone, await asyncio.gather(*map(engine.request, requests))

    for found in asyncio.run(one_by_one()):
        assert [one.token_T.tolist() for one in found] == responses(block)
        assert [one.finish for one in found] == [t.finish for (t,) in trajectories]
        logp_T = np.concatenate([one.logp_T for one in found])
        assert np.abs(logp_T - block.trained("rollout_logp")).max() < TOLERANCE
        assert {version for one in found for version in one.version_T} == {engine.session.version}


def test_without_a_seed_requests_differ(engine):
    async def ask():
        one = request(prompts(1)[0], seed=None)
        return [await engine.request(one) for _ in range(4)]

    assert len({tuple(found.token_T) for found in asyncio.run(ask())}) > 1


@pytest.mark.parametrize(
    "options, words",
    [
        ({"num_samples": 2}, "asks for 2 answers"),
        ({"arrays": {"pixels": np.zeros((3, 8, 8))}}, "brings pixels"),
        ({"max_response_tokens": 1000}, "request"),
    ],
)
def test_what_a_request_may_not_ask_is_refused_and_the_engine_lives(engine, options, words):
    with pytest.raises(EngineError, match=words):
        asyncio.run(engine.request(request(prompts(1)[0], **options)))
    answer(engine, prompts(1), sampling())


def test_an_id_that_runs_is_not_given_twice(engine):
    async def ask():
        running = asyncio.create_task(engine.request(unending()))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="runs already"):
            await engine.request(unending())
        await engine.abort([unending().id])
        return await running

    assert asyncio.run(ask()).finish == "abort"


def test_an_abort_returns_what_was_sampled_and_the_same_seed_goes_on_from_there(engine):
    async def ask():
        whole = await engine.request(unending())
        others = [unending(id=name) for name in ("train/0", "train/00")]
        running = [asyncio.create_task(engine.request(one)) for one in others]
        await until_it_samples()
        await engine.abort(["train/0", "never asked"])
        part = await running[0]
        return whole, part, await running[1]

    whole, part, other = asyncio.run(ask())
    assert whole.finish == "length" and part.finish == "abort"
    assert 0 < len(part.token_T) < len(whole.token_T)
    assert part.token_T.tolist() == whole.token_T[: len(part.token_T)].tolist()
    assert np.abs(part.logp_T - whole.logp_T[: len(part.token_T)]).max() < TOLERANCE
    assert len(part.logp_T) == len(part.version_T) == len(part.token_T)
    # An id that only begins alike goes on to its end.
    assert other.finish == "length" and other.token_T.tolist() == whole.token_T.tolist()
    continued = Request(
        id="again",
        token_ids=(*unending().token_ids, *part.token_T.tolist()),
        sampling=sampling(temperature=2.0, seed=9, max_response_tokens=LONG - len(part.token_T)),
    )
    rest = asyncio.run(engine.request(continued))
    assert [*part.token_T, *rest.token_T] == whole.token_T.tolist()


def test_an_abort_right_after_the_request_ends_it(engine):
    async def ask():
        running = asyncio.create_task(engine.request(unending()))
        await asyncio.sleep(0)
        await engine.abort([unending().id])
        return await asyncio.wait_for(running, 10)

    assert asyncio.run(ask()).finish == "abort"


def test_a_paused_engine_samples_nothing_takes_requests_and_goes_on(engine):
    async def ask():
        alone = await engine.request(unending())
        before = asyncio.create_task(engine.request(unending()))
        batched = asyncio.create_task(engine.generate(prompts(3), sampling()))
        await until_it_samples()
        await engine.pause()
        await engine.pause()
        during = asyncio.create_task(engine.request(unending(id="during")))
        held = asyncio.create_task(engine.request(unending(id="held")))
        await asyncio.sleep(1.0)
        waited = not before.done() and not during.done()
        await engine.abort(["held"])
        dropped = await asyncio.wait_for(held, 10)
        await engine.continue_()
        await batched
        return alone, await before, await during, waited, dropped

    alone, before, during, waited, dropped = asyncio.run(ask())
    assert waited and dropped.finish == "abort" and not len(dropped.token_T) and not len(dropped.version_T)
    for found in (before, during):
        assert found.finish == "length" and found.token_T.tolist() == alone.token_T.tolist()
        assert np.abs(found.logp_T - alone.logp_T).max() < TOLERANCE


def test_an_abort_on_a_paused_engine_returns_all_that_was_sampled(engine):
    async def ask():
        whole = await engine.request(unending())
        running = []
        for name in "ab":
            running.append(asyncio.create_task(engine.request(unending(id=name))))
            await until_it_samples()
        await engine.pause()
        await engine.abort(["a", "b"])
        parts = await asyncio.wait_for(asyncio.gather(*running), 10)
        await engine.continue_()
        return whole, parts

    whole, parts = asyncio.run(ask())
    for part in parts:
        assert part.finish == "abort" and 0 < len(part.token_T) < LONG
        assert part.token_T.tolist() == whole.token_T[: len(part.token_T)].tolist()
        assert np.abs(part.logp_T - whole.logp_T[: len(part.token_T)]).max() < TOLERANCE
    assert any(len(part.token_T) % 50 for part in parts), "SGLang reports every fiftieth token by itself"


def test_weights_swapped_in_a_pause_leave_each_token_the_probability_of_its_version(kind, engine, first):
    second, old = kind.model(2, **UNENDING), engine.session.version

    async def ask():
        running = [asyncio.create_task(engine.request(unending(seed, id=f"r{seed}"))) for seed in range(3)]
        await until_it_samples()
        await engine.pause()
        await engine.begin_swap(old + 1)
        with pytest.raises(EngineError, match="dirty"):
            await engine.continue_()
        with pytest.raises(EngineError, match="dirty"):
            await engine.request(unending(id="new"))
        write(engine, engine_weights(second))
        await engine.checksums()
        await engine.commit_swap(old + 1)
        await engine.continue_()
        return await asyncio.gather(*running)

    found = asyncio.run(ask())
    for seed, one in enumerate(found):
        versions = one.version_T.tolist()
        assert versions == sorted(versions) and set(versions) == {old, old + 1}
        assert largest_difference(one, unending(seed), {old: first, old + 1: second}) < TOLERANCE
    _, block = answer(engine, prompts(2), sampling())
    assert set(block.trained("version")) == {old + 1}


def test_the_cache_is_given_back_and_had_again(engine):
    """On a CPU nothing is given back; requests that come afterwards are answered all the same."""

    async def ask():
        before = await engine.request(request(prompts(1)[0]))
        await engine.release_cache()
        await engine.release_cache()
        await engine.resume_cache()
        return before, await engine.request(request(prompts(1)[0]))

    before, after = asyncio.run(ask())
    assert before.token_T.tolist() == after.token_T.tolist()
