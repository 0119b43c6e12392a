"""An engine over two tensor-parallel ranks: the same answers, and shards that the layout describes."""

import asyncio

import pytest
import torch
from engine_values import (
    TOLERANCE,
    answer,
    assert_in_place_is_what_the_loader_loads,
    hf_greedy,
    largest_difference,
    prompts,
    responses,
    sampling,
    swap_through_loader,
)

from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models import spec
from hybridrl.reshard.checkpoint import load_hf
from hybridrl.reshard.checksum import checksum
from hybridrl.reshard.transports import shm


@pytest.fixture(scope="module")
def models(kind, tmp_path_factory):
    """Two models and the folders they are in."""
    found = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("model")
        made = kind.model(seed)
        made.save_pretrained(folder)
        found.append((made, folder))
    return found


@pytest.fixture(scope="module")
def engine(kind, models):
    engine = kind.engine(models[0][1], tp=2)
    yield engine
    engine.shutdown()


def expected_checksums(kind, folder):
    layout = kind.layout(spec.read(folder), tp=2)
    found = []
    for rank in range(2):
        tensors = {name: torch.empty(shard.shape) for name, shard in layout.shards(rank).items()}
        load_hf(folder, layout, rank, tensors)
        found.append({name: checksum(tensor) for name, tensor in tensors.items()})
    return found


def test_two_ranks_answer_as_transformers_does_and_hold_what_the_layout_says(kind, engine, models):
    first, folder = models[0]
    asked = prompts(6)
    _, block = answer(engine, asked, sampling(temperature=0.0))
    assert responses(block) == [hf_greedy(first, prompt, 8) for prompt in asked]
    _, block = answer(engine, asked, sampling(num_samples=8, temperature=0.8))
    assert largest_difference(first, block, 0.8) < TOLERANCE
    assert asyncio.run(engine.checksums()) == expected_checksums(kind, folder)


def test_both_ranks_pass_the_probe_and_keep_their_weights(kind, engine, models):
    layout = kind.layout(spec.read(models[0][1]), tp=2)
    assert asyncio.run(engine.probe_loader(layout)) is None
    assert asyncio.run(engine.checksums()) == expected_checksums(kind, models[0][1])


def test_both_ranks_take_weights_through_their_loader(kind, engine, models):
    for _, folder in (models[1], models[0]):
        assert swap_through_loader(engine, folder, limit_bytes=1 << 16) > 2
        assert asyncio.run(engine.checksums()) == expected_checksums(kind, folder)


def test_both_ranks_take_weights_in_place(kind, engine, models):
    second, folder = models[1]
    layout = kind.layout(spec.read(folder), tp=2)

    async def swap():
        await engine.begin_swap(engine.session.version + 1)
        for rank, shared in enumerate(engine.export_parameters()):
            load_hf(folder, layout, rank, {name: shm.attach(handle) for name, handle in shared.items()})
        found = await engine.checksums()
        await engine.commit_swap(engine.session.version + 1)
        return found

    assert asyncio.run(swap()) == expected_checksums(kind, folder)
    asked = prompts(6)
    _, block = answer(engine, asked, sampling(temperature=0.0))
    assert responses(block) == [hf_greedy(second, prompt, 8) for prompt in asked]
    assert largest_difference(second, block, 1.0) < TOLERANCE


@pytest.mark.parametrize("sizes", [{"tp": 1}, {"tp": 2, "pp": 2}, {"tp": 2, "dp": 2}])
def test_a_trainers_ranks_write_what_the_loader_loads(kind, engine, models, sizes):
    source = MegatronLayout(spec.read(models[0][1]), **sizes)
    target = kind.layout(source.spec, tp=2)
    assert_in_place_is_what_the_loader_loads(engine, source, target, models[0], models[1])
