"""From single answers to trajectories and their token block."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np

from hybridrl.batch import TokenBlock
from hybridrl.errors import EngineLostError
from hybridrl.models.pictures import picture_columns
from hybridrl.rollout.base import Answer, Request
from hybridrl.types import PolicyVersion, Prompt, Sampling, Trajectory

Ask = Callable[[Request], Awaitable[Answer]]


async def answer_all(
    ask: Ask, prompts: Sequence[Prompt], sampling: Sampling, version: PolicyVersion, *, name: str
) -> tuple[list[list[Trajectory]], TokenBlock]:
    """Engine.generate in terms of Engine.request.

    Args:
        version: version that every token must have.
        name: name of the engine in ids and errors.

    Raises:
        EngineError: a request failed.
        EngineLostError: the engine has other weights than it should, or they were swapped during the call.
    """
    first_seed = random.getrandbits(62) if sampling.seed is None else sampling.seed
    call = f"{name}/generate/{random.getrandbits(64):x}"
    asked = [prompt for prompt in prompts for _ in range(sampling.num_samples)]
    one = replace(sampling, num_samples=1)
    answers = await asyncio.gather(
        *(
            ask(
                Request(
                    id=f"{call}/{i}",
                    token_ids=prompt.token_ids,
                    sampling=replace(one, seed=first_seed + i),
                    arrays=prompt.arrays,
                )
            )
            for i, prompt in enumerate(asked)
        )
    )
    trajectories, block = packed(asked, answers)
    found = {trajectory.version for trajectory in trajectories if trajectory.response_tokens}
    if found - {version} or any(trajectory.spans for trajectory in trajectories):
        raise EngineLostError(
            f"answers of {name} come from versions {sorted(found)}, not from {version} alone"
        )
    rows = iter(trajectories)
    return [[next(rows) for _ in range(sampling.num_samples)] for _ in prompts], block


def refuse_other_versions(
    answer: Answer, *, oldest: PolicyVersion, newest: PolicyVersion | None, name: str
) -> None:
    """Check that an answer was sampled from weights that the engine was given to serve.

    Args:
        oldest: version that the engine served when it was asked.
        newest: version that it serves now.

    Raises:
        EngineLostError: a token is of another version.
    """
    if not len(answer.version_T):
        return
    first, last = int(answer.version_T.min()), int(answer.version_T.max())
    if first < oldest or newest is None or last > newest:
        found = str(first) if first == last else f"{first} to {last}"
        served = str(oldest) if oldest == newest else f"{oldest} to {newest}"
        raise EngineLostError(f"{name} answered with weights of version {found}, it was given {served}")


def packed(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> tuple[list[Trajectory], TokenBlock]:
    """Trajectories of one answer each, and the block that holds their tokens in the same order.

    Args:
        prompts: prompt of each answer.
    """
    experts = [answer.experts_SLK for answer in answers if answer.experts_SLK is not None]
    block = TokenBlock.from_answers(
        [prompt.token_ids for prompt in prompts],
        [answer.token_T for answer in answers],
        [answer.logp_T for answer in answers],
        [answer.version_T for answer in answers],
        experts=experts or None,
        heads=[answer.head_TK for answer in answers if answer.head_TK is not None] or None,
    )
    if shown := picture_columns([prompt.arrays for prompt in prompts]):
        block = replace(block, columns={**block.columns, **shown})
    trajectories = [
        _trajectory(row, len(prompt.token_ids), answer)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    return trajectories, block


def _trajectory(row: int, prompt_tokens: int, answer: Answer) -> Trajectory:
    tokens, spans = len(answer.token_T), spans_of(answer.version_T)
    return Trajectory(
        row=row,
        prompt_tokens=prompt_tokens,
        response_tokens=tokens,
        trained_tokens=tokens,
        finish=answer.finish,
        version=spans[0][0] if spans else 0,
        spans=spans if len(spans) > 1 else (),
    )


def spans_of(version_T: np.ndarray) -> tuple[tuple[PolicyVersion, int], ...]:
    """(version, number of tokens) of each version, ascending."""
    if not len(version_T):
        return ()
    if version_T[0] == version_T[-1]:  # versions ascend
        return ((int(version_T[0]), len(version_T)),)
    versions, counts = np.unique(version_T, return_counts=True)
    return tuple(zip(versions.tolist(), counts.tolist(), strict=True))
