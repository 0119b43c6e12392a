"""Runs in vLLM's environment, without a model: what its code asks of ours on a GPU only, and our sampler.

Prints what was found as JSON.
"""

# pyright: reportMissingImports=false

import asyncio
import json
import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.executor import Executor
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from hybridrl.rollout.vllm.core import Core
from hybridrl.rollout.vllm.sampler import SeededSampler

REQUESTS, VOCABULARY = 5, 11


def measured_samples() -> tuple[int, ...]:
    """Shape of the tokens that vLLM samples when it measures memory, before there is any request."""
    runner = SimpleNamespace(
        input_batch=SimpleNamespace(req_ids=[], num_reqs=0),
        requests={},
        seq_lens=torch.zeros(REQUESTS, dtype=torch.int32),
        vllm_config=SimpleNamespace(model_config=SimpleNamespace(multimodal_config=None)),
        model=SimpleNamespace(compute_logits=lambda hidden: hidden),
        device=torch.device("cpu"),
        speculative_config=None,
    )
    runner.sampler = SeededSampler(runner)
    sampled = GPUModelRunner._dummy_sampler_run(runner, torch.empty(REQUESTS, VOCABULARY))
    return tuple(sampled.sampled_token_ids.shape)


def sampled_with_min_p() -> list[list[int]]:
    """Distinct tokens of requests that ask for a min_p of 0.5 and of 0, of which the third and the fourth
    token are likely, and all others a tenth as likely."""
    count = 200
    asked = {str(i): SamplingParams(min_p=0.5 * (i < count)) for i in range(2 * count)}
    runner = SimpleNamespace(
        input_batch=SimpleNamespace(req_ids=list(asked), num_reqs=len(asked)),
        requests={name: SimpleNamespace(sampling_params=given) for name, given in asked.items()},
        seq_lens=torch.arange(2 * count),
    )
    metadata = SimpleNamespace(
        temperature=torch.ones(2 * count), all_greedy=False, all_random=True, top_k=None, top_p=None
    )
    logits = torch.full((2 * count, VOCABULARY), 0.1).log()
    logits[:, 2:4] = 0.0
    token = SeededSampler(runner)(logits, metadata).sampled_token_ids.flatten()
    return [sorted(set(half.tolist())) for half in token.split(count)]


class Workers:
    """vLLM's executor over workers of which only the calls are kept."""

    sleep, wake_up, discard = Executor.sleep, Executor.wake_up, Executor.discard
    is_sleeping = Executor.is_sleeping

    def __init__(self) -> None:
        self.sleeping_tags: set[str] = set()
        self.calls: list[str] = []

    def collective_rpc(self, method: str, timeout: Any = None, args: Any = (), kwargs: Any = None) -> list:
        self.calls.append(args[0] if method == "rollout_call" else method)
        return []


class Idle(Core):
    """Between two requests."""

    def __init__(self, workers: Workers) -> None:
        self._core = SimpleNamespace(
            model_executor=workers,
            reset_prefix_cache=lambda: True,
            collective_rpc=workers.collective_rpc,
            scheduler=SimpleNamespace(has_requests=lambda: False),
        )
        self._paused, self._done, self._asked = False, [], deque()
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._loop, daemon=True)


def calls_of_two_steps() -> list[str]:
    """Calls of the workers when the cache is released and allocated twice, as around two optimizer steps."""
    workers = Workers()

    async def steps() -> None:
        core = Idle(workers)
        core.start()
        for _ in range(2):
            await core.release_cache()
            await core.resume_cache()

    asyncio.run(steps())
    return workers.calls


if __name__ == "__main__":
    found = {"measured": measured_samples(), "calls": calls_of_two_steps(), "min_p": sampled_with_min_p()}
    print(json.dumps(found))
