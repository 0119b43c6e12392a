"""An engine with experts over two ranks: what expert-parallel ranks write in place is what it loads."""

import numpy as np
import pytest
import torch
from engine_values import (
    answer,
    assert_in_place_is_what_the_loader_loads,
    prompts,
    sampling,
    saved_mixture,
    setup,
)

from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models import spec
from hybridrl.rollout.sglang.start import SGLangEngine


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models and the folders they are in."""
    return [saved_mixture(tmp_path_factory.mktemp("model"), seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def engine(models):
    engine = SGLangEngine(setup(models[0][1], tp=2))
    yield engine
    engine.shutdown()


@pytest.mark.parametrize(
    "sizes", [{"dp": 2, "ep": 2}, {"tp": 2, "pp": 2, "ep": 2}, {"tp": 2, "dp": 2, "ep": 2, "etp": 2}]
)
def test_expert_parallel_ranks_write_what_the_loader_loads(engine, models, sizes):
    source = MegatronLayout(spec.read(models[0][1]), **sizes)
    target = SGLangLayout(source.spec, tp=2)
    assert_in_place_is_what_the_loader_loads(engine, source, target, models[0], models[1])


def test_the_engine_says_which_experts_tokens_went_to(models):
    """As transformers chooses them, with prompts from the prefix cache too; nothing of the last token."""
    made, folder = models[0]
    engine = SGLangEngine(setup(folder, returns_experts=True, max_prompt_tokens=80))
    try:
        asked = [*prompts(2, length=70), *prompts(1, length=5)]
        _, block = answer(engine, asked, sampling(num_samples=2))
    finally:
        engine.shutdown()
    assert block.columns["experts"].dtype == np.uint8
    for row in map(block.row, range(len(block))):
        tokens = torch.tensor(block.token_T[row].astype(np.int64))
        with torch.no_grad():
            logits = made(tokens[None], output_router_logits=True).router_logits
        chosen_LTK = torch.stack([layer.topk(2).indices for layer in logits]).sort().values
        found_TLK = np.sort(block.columns["experts"][row], axis=2)
        np.testing.assert_array_equal(found_TLK[:-1], chosen_LTK.transpose(0, 1)[:-1].numpy())
        assert (found_TLK[-1] == 255).all()
