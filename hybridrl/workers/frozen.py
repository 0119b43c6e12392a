"""Asks the engines of a frozen player for its answers."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ray.exceptions import RayError

from hybridrl.config.judge import FrozenConfig
from hybridrl.environments.base import EnvironmentFailedError
from hybridrl.errors import HybridRLError
from hybridrl.rollout.base import Answer, Request
from hybridrl.rollout.groups import limited
from hybridrl.types import Sampling
from hybridrl.workers.served import AskServed


class AskFrozen:
    """Implements AskTurn over ServedWorkers."""

    def __init__(
        self,
        engines: Sequence[Any],
        model: FrozenConfig,
        max_response_tokens: int,
        stop_token_ids: tuple[int, ...],
    ) -> None:
        self._ask, self._numbers = AskServed(engines, model), itertools.count()
        self._timeout_s = model.timeout_s
        self._sampling = Sampling(
            num_samples=1,
            max_response_tokens=max_response_tokens,
            temperature=model.temperature,
            stop_token_ids=stop_token_ids,
        )

    async def __call__(
        self,
        token_ids: Sequence[int],
        *,
        turn: int = 0,
        most: int | None = None,
        stop_token_ids: tuple[int, ...] = (),
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> Answer:
        """
        Args:
            turn: seed of the answer.
            arrays: a frozen player sees no pictures, see config/rules/pictures.py.

        Raises:
            EnvironmentFailedError: no engine answers: the episode is played again.
        """
        sampling = replace(limited(self._sampling, most, stop_token_ids), seed=turn)
        name = f"frozen/{next(self._numbers)}"
        request = Request(id=name, token_ids=tuple(token_ids), sampling=sampling)
        try:
            return await self._ask(request)
        except TimeoutError as error:
            what = f"the frozen player gave no answer within frozen.timeout_s = {self._timeout_s:g}"
            raise EnvironmentFailedError(what, where="frozen", reason="timeout") from error
        except (RayError, HybridRLError) as error:
            what = f"the frozen player failed: {type(error).__name__}: {str(error)[:400]}"
            raise EnvironmentFailedError(what, where="frozen") from error
