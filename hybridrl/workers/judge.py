"""The engines of a model that judges, and how the reward's workers ask them."""

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray.exceptions import RayError

from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.judge import JudgeConfig
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.errors import HybridRLError
from hybridrl.rewards.judges.replies import Reply
from hybridrl.rollout.base import Answer, Request
from hybridrl.types import Sampling
from hybridrl.workers.served import AskServed

_SHOWN = 400
"""Characters of an engine's error that a failure shows."""


class RayJudge:
    """The engines, each in a ServedWorker."""

    def __init__(self, workers: WorkerGroup, judge: JudgeConfig) -> None:
        self.workers, self._judge = workers, judge

    async def start(self, timeout_s: float) -> tuple[Sequence[Any], JudgeConfig]:
        """Start the engines.

        Returns:
            Arguments with which a worker of the reward asks them.
        """
        await self.workers.all("start", timeout_s=timeout_s)
        return self.workers.actors, self._judge


class AskEngines:
    """Implements AskEngine over engines that are asked in turn."""

    def __init__(self, engines: Sequence[Any], judge: JudgeConfig) -> None:
        """
        Args:
            engines: handles of ServedWorkers that serve the judge.
        """
        self._ask, self._judge, self._numbers = AskServed(engines, judge), judge, itertools.count()
        self._tokenizer = load_tokenizer(judge.path)
        self._sampling = Sampling(
            num_samples=1,
            max_response_tokens=judge.max_response_tokens,
            temperature=judge.temperature,
            stop_token_ids=self._tokenizer.stop_token_ids,
        )

    async def __call__(self, messages: Sequence[Mapping[str, str]]) -> Reply:
        ids, judge = self._encoded(messages), self._judge
        if len(ids) > judge.max_prompt_tokens:
            most = f"judge.max_prompt_tokens = {judge.max_prompt_tokens}"
            return Reply(failure=f"too_long: a question of {len(ids)} tokens, {most}")
        try:
            answer: Answer = await self._ask(self._request(ids))
        except TimeoutError:
            return Reply(failure=f"timeout: no verdict within judge.timeout_s = {judge.timeout_s:g}")
        except (RayError, HybridRLError) as error:
            return Reply(failure=f"engine: {type(error).__name__}: {error}"[:_SHOWN])
        return Reply(self._tokenizer.decode_answers([answer.token_T.tolist()])[0])

    def _encoded(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        plain = self._judge.chat_template == "none"
        text = "".join(m["content"] for m in messages) if plain else self._tokenizer.render(list(messages))
        (ids,) = self._tokenizer.encode([text], add_special_tokens=plain)
        return ids

    def _request(self, ids: Sequence[int]) -> Request:
        """Its seed is that of the question: a verdict can be repeated."""
        sampling = replace(self._sampling, seed=zlib.crc32(repr(ids).encode()))
        return Request(id=f"judge/{next(self._numbers)}", token_ids=tuple(ids), sampling=sampling)
