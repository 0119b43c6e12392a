"""Requests in the host of an SGLang engine, on a manager that refuses them."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from hybridrl.rollout.base import Request
from hybridrl.rollout.sglang.serve import Serving
from hybridrl.types import Sampling


class Refusing:
    """The part of SGLang's TokenizerManager that is used. It takes no prompt into its cache."""

    context_len, model_config = 64, SimpleNamespace(vocab_size=10, hf_eos_token_id={2})

    async def generate_request(self, asked):
        if asked.sampling_params["max_new_tokens"] == 0:
            raise ValueError("the cache is full")
        yield {}


def test_a_prompt_that_cannot_be_cached_ends_the_requests_that_share_it() -> None:
    async def scenario():
        serving = Serving(Refusing(), caches_prefixes=True, returns_experts=False, seed=0)
        sampling = Sampling(num_samples=1, max_response_tokens=4)
        serving.start([Request(id=name, token_ids=(1, 2), sampling=sampling) for name in "ab"])
        return await asyncio.wait_for(serving.inbox.take(), 1)

    errors = asyncio.run(scenario()).errors
    assert list(errors) == ["a", "b"] and all("the cache is full" in str(error) for error in errors.values())


class Answering(Refusing):
    """Samples two tokens, and reports as many likeliest ones as it is asked for."""

    last = 5
    _collect_batch_responses: Any = None
    """Serving sets it."""

    async def generate_request(self, asked):
        generators = [self._one(count) for count in asked.top_logprobs_num]
        await self._collect_batch_responses(generators)
        yield {}

    async def _one(self, count):
        tops = [[(-0.5 - place, 3 * place + at, None) for at in range(count)] for place in range(2)]
        described = {
            "output_token_logprobs": [(-0.25, 4, None), (-0.75, 5, None)],
            "output_top_logprobs": tops,
            "weight_versions": [{"start": 0, "end": 2, "version": "1"}],
            "finish_reason": {"type": "length"},
        }
        yield {"output_ids": [4, self.last], "meta_info": described}


@pytest.mark.parametrize(("last", "finish"), [(5, "length"), (2, "stop"), (7, "stop")])
def test_an_answer_whose_last_token_is_an_end_token_is_not_too_long(last: int, finish: str) -> None:
    """2 ends answers of the model, 7 those of this request."""

    async def scenario():
        manager = Answering()
        manager.last = last
        serving = Serving(manager, caches_prefixes=False, returns_experts=False, seed=0)
        sampling = Sampling(num_samples=1, max_response_tokens=2, stop_token_ids=(7,))
        serving.start([Request(id="a", token_ids=(1,), sampling=sampling)])
        return await asyncio.wait_for(serving.inbox.take(), 1)

    (answer,) = asyncio.run(scenario()).answers()
    assert answer.finish == finish


def test_likeliest_tokens_come_with_the_requests_that_ask_for_them() -> None:
    async def scenario():
        serving = Serving(Answering(), caches_prefixes=False, returns_experts=False, seed=0)
        asked = [Sampling(num_samples=1, max_response_tokens=4, head_tokens=count) for count in (0, 3)]
        serving.start([Request(id=str(s.head_tokens), token_ids=(1,), sampling=s) for s in asked])
        return await asyncio.wait_for(serving.inbox.take(), 1)

    answers = {answer.id: answer for answer in asyncio.run(scenario()).answers()}
    assert answers["0"].head_TK is None
    assert answers["3"].head_TK is not None
    ids, logps = answers["3"].head_TK
    assert ids.tolist() == [[0, 1, 2], [3, 4, 5]] and ids.dtype == "int32"
    assert logps.tolist() == [[-0.5] * 3, [-1.5] * 3] and logps.dtype == "float32"
