"""Real engines of every kind: what they answer, against transformers, and the swap of their weights.

One engine of a kind for all tests of this file; each leaves it serving.
"""

import asyncio

import numpy as np
import psutil
import pytest
import torch
from engine_values import (
    END,
    TOLERANCE,
    answer,
    assert_in_place_is_what_the_loader_loads,
    engine_weights,
    hf_greedy,
    largest_difference,
    prompts,
    responses,
    sampling,
    shard,
    swap,
    swap_through_loader,
    write,
)

from hybridrl.errors import EngineError, VersionError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models import spec
from hybridrl.reshard.checksum import checksum
from hybridrl.reshard.swap import SwapWriter
from hybridrl.types import Prompt


@pytest.fixture(scope="module")
def first(kind):
    return kind.model(1)


@pytest.fixture(scope="module")
def second(kind):
    return kind.model(2)


@pytest.fixture(scope="module")
def folder(first, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    first.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(kind, folder):
    engine = kind.engine(folder)
    yield engine
    engine.shutdown()


@pytest.fixture
def back_to_first(engine, first):
    """For a test that leaves other weights behind."""
    yield
    swap(engine, engine_weights(first))


def test_greedy_answers_and_their_logprobs_are_those_of_transformers(engine, first):
    asked = prompts(6) + prompts(2, length=90, seed=1)
    trajectories, block = answer(engine, asked, sampling(temperature=0.0, max_response_tokens=20))
    assert responses(block) == [hf_greedy(first, prompt, 20) for prompt in asked]
    assert largest_difference(first, block, 1.0) < TOLERANCE
    assert [len(group) for group in trajectories] == [1] * 8


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_logprobs_are_those_of_the_distribution_that_was_sampled(engine, first, temperature):
    asked = sampling(num_samples=8, temperature=temperature)
    _, block = answer(engine, prompts(8), asked)
    assert largest_difference(first, block, temperature) < TOLERANCE


def test_logprobs_are_of_the_whole_vocabulary_when_the_distribution_is_cut(engine, first):
    _, block = answer(engine, prompts(4), sampling(num_samples=8, top_k=5, top_p=0.8))
    assert largest_difference(first, block, 1.0) < TOLERANCE
    for i in range(len(block)):
        tokens = block.token_T[block.row(i)].tolist()
        for at in range(int(block.prompt_tokens_N[i]), len(tokens)):
            with torch.no_grad():
                logits = first(torch.tensor([tokens[:at]])).logits[0, -1]
            assert tokens[at] in logits.topk(5).indices.tolist()


def test_first_tokens_are_sampled_as_often_as_they_are_likely(engine, first):
    (prompt,) = prompts(1)
    count = 4000
    _, block = answer(engine, [prompt], sampling(num_samples=count, max_response_tokens=1))
    found = np.bincount([tokens[0] for tokens in responses(block)], minlength=120)
    with torch.no_grad():
        likely = first(torch.tensor([prompt.token_ids])).logits[0, -1].softmax(-1).numpy()
    # Five standard deviations of a binomial count, and one count for the rare ones.
    assert (np.abs(found - count * likely) <= 1 + 5 * np.sqrt(count * likely * (1 - likely))).all()


def test_an_answer_ends_with_its_stop_token_which_is_trained_on(engine, first):
    stops = tuple(range(60, 100))
    trajectories, block = answer(engine, prompts(16), sampling(num_samples=4, stop_token_ids=stops))
    ended = [t for group in trajectories for t in group if t.finish == "stop"]
    assert len(ended) > 20
    assert largest_difference(first, block, 1.0) < TOLERANCE
    for trajectory in (t for group in trajectories for t in group):
        *before, last = responses(block)[trajectory.row]
        assert not set(before) & {*stops, END}
        assert (last in {*stops, END}) == (trajectory.finish == "stop")
        assert trajectory.response_tokens == trajectory.trained_tokens == len(before) + 1
        assert block.loss_mask_T[block.row(trajectory.row)].sum() == trajectory.trained_tokens


def test_an_answer_may_be_as_long_as_the_setup_says(engine):
    asked = prompts(2, length=96)
    trajectories, block = answer(engine, asked, sampling(num_samples=2, max_response_tokens=32, seed=0))
    flat = [t for group in trajectories for t in group]
    assert any(t.finish == "length" for t in flat)
    assert all((t.response_tokens == 32) == (t.finish == "length") for t in flat)
    assert all(t.prompt_tokens == 96 for t in flat)


def test_rows_of_the_block_are_prompts_in_order_with_their_samples(engine):
    asked = prompts(5, length=4) + prompts(3, length=9)
    trajectories, block = answer(engine, asked, sampling(num_samples=3))
    assert [t.row for group in trajectories for t in group] == list(range(24))
    for prompt, group in zip(asked, trajectories, strict=True):
        for trajectory in group:
            tokens = block.token_T[block.row(trajectory.row)][: trajectory.prompt_tokens]
            assert tuple(tokens.tolist()) == prompt.token_ids
    assert set(block.columns["version"][block.loss_mask_T]) == {engine.session.version}
    assert set(block.columns["version"][~block.loss_mask_T]) == {-1}


def test_the_same_seed_gives_the_same_answers_in_any_company(engine):
    asked = prompts(12)
    _, block = answer(engine, asked, sampling(num_samples=4))
    _, again = answer(engine, asked, sampling(num_samples=4))
    _, later_half = answer(engine, asked[6:], sampling(num_samples=4, seed=11 + 6 * 4))
    _, other = answer(engine, asked, sampling(num_samples=4, seed=12345))
    assert responses(block) == responses(again) != responses(other)
    assert np.array_equal(block.columns["rollout_logp"], again.columns["rollout_logp"])
    assert responses(later_half) == responses(block)[24:]


def test_without_a_seed_answers_differ(engine):
    _, block = answer(engine, prompts(8), sampling(seed=None))
    _, again = answer(engine, prompts(8), sampling(seed=None))
    assert responses(block) != responses(again)


def test_calls_may_overlap_and_join_those_that_run(engine):
    async def call(i, delay_s):
        await asyncio.sleep(delay_s)
        return await engine.generate(prompts(3, seed=i), sampling(num_samples=2))

    async def together(step_s):
        return await asyncio.gather(*(call(i, i * step_s) for i in range(4)))

    alone = [responses(answer(engine, prompts(3, seed=i), sampling(num_samples=2))[1]) for i in range(4)]
    for step_s in (0.0, 0.002, 0.005, 0.01):
        assert [responses(block) for _, block in asyncio.run(together(step_s))] == alone


@pytest.mark.parametrize("ids", [(), (5, 120), (-1,), tuple(range(3, 3 + 97))])
def test_a_prompt_that_the_model_cannot_take_is_refused_and_the_engine_lives(engine, ids):
    with pytest.raises(EngineError):
        answer(engine, [Prompt("bad", ids, {})], sampling(max_response_tokens=40))
    answer(engine, prompts(1), sampling())


def test_checksums_are_those_of_the_weights(engine, first):
    (found,) = asyncio.run(engine.checksums())
    assert found == {name: checksum(weight) for name, weight in engine_weights(first).items()}


def test_weights_written_by_another_process_are_served(engine, second, back_to_first):
    asked = prompts(4)
    _, before = answer(engine, asked, sampling(temperature=0.0))
    version, (found,) = swap(engine, engine_weights(second))
    _, after = answer(engine, asked, sampling(temperature=0.0))
    assert found == {name: checksum(weight) for name, weight in engine_weights(second).items()}
    assert responses(after) == [hf_greedy(second, prompt, 8) for prompt in asked] != responses(before)
    assert largest_difference(second, after, 1.0) < TOLERANCE
    assert set(after.columns["version"][after.loss_mask_T]) == {version}


def test_prefixes_of_the_old_weights_are_forgotten(engine, second, back_to_first):
    asked = prompts(2, length=90)
    answer(engine, asked, sampling(num_samples=4))
    swap(engine, engine_weights(second))
    _, block = answer(engine, asked, sampling(num_samples=4))
    assert largest_difference(second, block, 1.0) < TOLERANCE


def test_the_probe_of_the_loader_passes_and_leaves_no_trace(kind, engine, folder):
    asked, greedy = prompts(4), sampling(temperature=0.0)
    answer(engine, asked, greedy)  # Later answers find these prompts in the prefix cache, all alike.
    before, (_, block) = asyncio.run(engine.checksums()), answer(engine, asked, greedy)
    assert asyncio.run(engine.probe_loader(kind.layout(spec.read(folder)))) is None
    after, (_, again) = asyncio.run(engine.checksums()), answer(engine, asked, greedy)
    assert after == before
    assert responses(again) == responses(block)
    assert np.array_equal(again.columns["rollout_logp"], block.columns["rollout_logp"])


def test_a_layout_that_is_not_the_engines_is_refused_by_the_probe_and_the_engine_serves_on(
    kind, engine, folder
):
    before = asyncio.run(engine.checksums())
    difference = asyncio.run(engine.probe_loader(kind.layout(spec.read(folder), tp=2)))
    assert "its layout says" in difference.what
    assert asyncio.run(engine.checksums()) == before
    answer(engine, prompts(1), sampling())


def test_the_loader_is_not_probed_while_requests_run(kind, engine, folder):
    async def run():
        asked = sampling(num_samples=16, max_response_tokens=30)
        request = asyncio.create_task(engine.generate(prompts(8), asked))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="answers requests"):
            await engine.probe_loader(kind.layout(spec.read(folder)))
        await request

    asyncio.run(run())


def test_weights_through_the_engines_loader_are_those_written_in_place(
    kind, engine, second, back_to_first, tmp_path
):
    second.save_pretrained(tmp_path)
    asked = prompts(4)
    _, (in_place,) = swap(engine, engine_weights(second))
    _, block = answer(engine, asked, sampling(temperature=0.0))
    swap(engine, engine_weights(kind.model(1)))
    assert swap_through_loader(engine, tmp_path, limit_bytes=1 << 16) > 2
    assert asyncio.run(engine.checksums()) == [in_place]
    _, again = answer(engine, asked, sampling(temperature=0.0))
    assert responses(again) == responses(block) == [hf_greedy(second, prompt, 8) for prompt in asked]
    assert np.array_equal(again.columns["rollout_logp"], block.columns["rollout_logp"])


@pytest.mark.parametrize("sizes", [{"tp": 2}, {"pp": 2}, {"tp": 2, "pp": 2}])
def test_a_trainers_ranks_write_what_the_loader_loads(
    kind, engine, first, folder, second, back_to_first, tmp_path, sizes
):
    second.save_pretrained(tmp_path)
    source = MegatronLayout(spec.read(folder), **sizes)
    target = kind.layout(source.spec)
    assert_in_place_is_what_the_loader_loads(engine, source, target, (first, folder), (second, tmp_path))


def test_one_wrong_element_shows_in_the_checksums(engine, first):
    name = "model.layers.1.mlp.down_proj.weight"
    planted = engine_weights(first)[name].clone()
    planted[3, 5] += 1e-7
    (before,) = asyncio.run(engine.checksums())
    write(engine, {name: planted})
    (after,) = asyncio.run(engine.checksums())
    write(engine, {name: engine_weights(first)[name]})
    assert {n for n in before if before[n] != after[n]} == {name}
    assert asyncio.run(engine.checksums()) == [before]


def test_an_engine_in_a_swap_does_not_serve_until_a_later_swap_commits(engine, first):
    version = engine.session.version + 1

    async def failed_swap():
        await engine.begin_swap(version)
        with pytest.raises(EngineError, match="dirty"):
            await engine.generate(prompts(1), sampling())
        with pytest.raises(VersionError):
            await engine.commit_swap(version + 1)
        with pytest.raises(EngineError, match="must not serve"):
            await engine.generate(prompts(1), sampling())
        await engine.begin_swap(version)
        write(engine, engine_weights(first))
        await engine.commit_swap(version)

    asyncio.run(failed_swap())
    _, block = answer(engine, prompts(4), sampling())
    assert largest_difference(first, block, 1.0) < TOLERANCE


def test_a_swap_begins_when_no_request_runs(engine):
    async def run():
        asked = sampling(num_samples=16, max_response_tokens=30)
        request = asyncio.create_task(engine.generate(prompts(8), asked))
        await asyncio.sleep(0)
        await engine.begin_swap(engine.session.version + 1)
        running = len(engine._outbox)
        await engine.commit_swap(engine.session.version + 1)
        return running, await request

    running, (trajectories, _) = asyncio.run(run())
    assert running == 0 and {t.version for group in trajectories for t in group} == {
        engine.session.version - 1
    }


def memory(engine):
    host = psutil.Process(engine._process.pid)
    return sum(process.memory_info().rss for process in (host, *host.children(recursive=True)))


def test_memory_does_not_grow_over_five_hundred_swaps(kind, engine, folder):
    asked = prompts(8)
    source = MegatronLayout(spec.read(folder), tp=2)
    target = kind.layout(source.spec)
    exported = engine.export_parameters()
    writers = [SwapWriter(source, rank, [(target, exported)]) for rank in range(2)]
    shards = [shard(source, rank, folder) for rank in range(2)]

    async def step(number):
        version = engine.session.version + 1
        if number % 10 == 0:
            await engine.generate(asked, sampling(num_samples=4, max_response_tokens=4))
        await engine.begin_swap(version)
        for writer, tensors in zip(writers, shards, strict=True):
            writer.write(tensors)
        await engine.checksums()
        await engine.commit_swap(version)

    async def steps(count):
        for number in range(count):
            await step(number)

    asyncio.run(steps(100))
    before, descriptors = memory(engine), psutil.Process(engine._process.pid).num_fds()
    asyncio.run(steps(500))
    # What 500 leaked answers or checksum tables would take; pages that an allocator keeps come and go.
    assert memory(engine) - before < 24 * 2**20
    assert psutil.Process(engine._process.pid).num_fds() <= descriptors + 2


def test_listeners_are_on_loopback(engine):
    host = psutil.Process(engine._process.pid)
    addresses = {
        connection.laddr.ip
        for process in (host, *host.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
