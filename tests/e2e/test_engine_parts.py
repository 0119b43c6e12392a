"""An engine in two parts, as on two nodes: the same answers as in one, and all ranks are reached."""

import asyncio
import dataclasses
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from engine_values import model, prompts, sampling, setup

from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models import spec
from hybridrl.rollout.sglang.start import SGLangEngine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model(1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        rendezvous = f"127.0.0.1:{probe.getsockname()[1]}"
    whole = setup(folder, tp=2)
    setups = [
        dataclasses.replace(
            whole, log_path=f"{whole.log_path}-{part}", parts=2, part=part, rendezvous=rendezvous
        )
        for part in range(2)
    ]
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as threads:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        started = list(threads.map(SGLangEngine, setups))
    yield started
    for engine in started:
        engine.shutdown()


def test_two_parts_answer_as_one_engine_does(parts, folder):
    one = SGLangEngine(setup(folder, tp=2))
    try:
        (_, expected), (_, found) = (
            asyncio.run(engine.generate(prompts(6), sampling(num_samples=2, seed=5)))
            for engine in (one, parts[0])
        )
        assert asyncio.run(one.checksums()) == asyncio.run(parts[0].checksums())
    finally:
        one.shutdown()
    np.testing.assert_array_equal(found.token_T, expected.token_T)
    np.testing.assert_array_equal(found.columns["rollout_logp"], expected.columns["rollout_logp"])


def test_the_first_part_speaks_for_the_ranks_of_all(parts, folder):
    layout = SGLangLayout(spec.read(folder), tp=2)
    assert asyncio.run(parts[0].probe_loader(layout)) is None
    exported = parts[0].export_parameters()
    for rank, tensors in enumerate(exported):
        assert {name: tensor.shape for name, tensor in tensors.items()} == {
            name: shard.shape for name, shard in layout.shards(rank).items()
        }
    pids = {tensors["model.embed_tokens.weight"].address[0] for tensors in exported}
    assert len(pids) == 2, "each rank's memory is its own"
