"""Requests in the host of an SGLang engine, on a manager that refuses them."""

import asyncio
from types import SimpleNamespace

from hybridrl.rollout.base import Request
from hybridrl.rollout.sglang.serve import Serving
from hybridrl.types import Sampling


class Refusing:
    """The part of SGLang's TokenizerManager that is used. It takes no prompt into its cache."""

    context_len, model_config = 64, SimpleNamespace(vocab_size=10)

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
