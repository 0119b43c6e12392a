"""Engines of both kinds with the same weights: the same seeds give the same tokens."""

import numpy as np
import pytest
from engine_kinds import TESTED, case_of
from engine_values import TOLERANCE, answer, prompts, responses, sampling


@pytest.mark.slow
def test_the_same_seeds_give_the_same_tokens_in_every_kind_of_engine(tmp_path):
    case_of("vllm").model(1).save_pretrained(tmp_path)
    found = {}
    for name in TESTED:
        engine = case_of(name).engine(tmp_path, log_path=str(tmp_path / f"{name}.log"))
        try:
            asked = [
                sampling(num_samples=4),
                sampling(num_samples=4, temperature=0.7, top_k=5, top_p=0.9),
                sampling(num_samples=4, min_p=0.2),
            ]
            found[name] = [answer(engine, prompts(12), options)[1] for options in asked]
        finally:
            engine.shutdown()
    for ours, theirs in zip(found["sglang"], found["vllm"], strict=True):
        assert responses(ours) == responses(theirs)
        difference = ours.columns["rollout_logp"] - theirs.columns["rollout_logp"]
        assert np.abs(difference).max() < TOLERANCE
