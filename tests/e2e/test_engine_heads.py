"""A real engine's likeliest tokens: they and their log-probabilities are those of transformers."""

import numpy as np
import pytest
import torch
from engine_values import TOLERANCE, answer, model, prompts, sampling, setup

from hybridrl.rollout.sglang.start import SGLangEngine


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    made = model(1)
    made.save_pretrained(folder)
    engine = SGLangEngine(setup(folder))
    yield engine, made
    engine.shutdown()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_likeliest_tokens_are_those_of_transformers(engine, temperature):
    engine, made = engine
    asked = sampling(num_samples=2, temperature=temperature, head_tokens=4)
    _, block = answer(engine, prompts(3), asked)
    head_TK, logp_TK = (block.columns[name] for name in ("engine_head", "engine_head_logp"))
    assert head_TK.shape == logp_TK.shape == (len(block.token_T), 4)
    for row in map(block.row, range(len(block))):
        tokens, trained = torch.tensor(block.token_T[row].astype(np.int64)), block.loss_mask_T[row][1:]
        with torch.no_grad():
            logits_TV = made(tokens[None]).logits[0, :-1]
        wanted = (logits_TV / temperature).log_softmax(-1)[torch.from_numpy(trained)].topk(4)
        np.testing.assert_array_equal(head_TK[row][1:][trained], wanted.indices.numpy())
        assert np.abs(logp_TK[row][1:][trained] - wanted.values.numpy()).max() < TOLERANCE


def test_a_request_that_does_not_ask_gets_none(engine):
    _, block = answer(engine[0], prompts(1), sampling())
    assert "engine_head" not in block.columns
