"""Collects the scored groups of one policy update: prompts are taken, answered and scored; with dynamic
sampling,
further prompts replace groups whose rewards are all equal. Shape letters: N trajectories.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import torch

from hybridrl.algorithms.sampling import DynamicSampling, informative, within_difficulty
from hybridrl.config.schema import Config, DynamicSamplingConfig
from hybridrl.controller.buffer import Rollouts
from hybridrl.controller.roles import Roles
from hybridrl.controller.sampling import greedy_sampling, train_sampling
from hybridrl.types import Group, Prompt, mean


async def collect(cfg: Config, roles: Roles, step: int) -> Rollouts:
    """The scored groups of a step. With dynamic sampling there may be fewer than prompts_per_step, because
    the other prompts are always solved, or never. If no group carries a signal, sampled ones are returned,
    and the step moves nothing."""
    wanted, dynamic = cfg.batch.prompts_per_step, cfg.algorithm.dynamic_sampling
    more = DynamicSampling(wanted=wanted, max_rounds=dynamic.max_rounds if dynamic else 1)
    kept: list[Group] = []
    sampled: list[Group] = []
    rounds, count = 0, wanted
    while count:
        prompts = roles.prompts.take(count)
        groups = await answer(cfg, roles, prompts, step=step, first_prompt=len(sampled))
        kept += [group for group in groups if dynamic is None or has_signal(group, dynamic)]
        sampled, rounds = sampled + groups, rounds + 1
        count = more.next_prompts(len(kept), len(sampled), rounds)
    metrics = selection_metrics(sampled, len(kept), rounds) if dynamic else {}
    if len(kept) < wanted:
        roles.observe.warn(
            "dynamic_sampling",
            f"step {step}: {len(kept)} of {wanted} groups carry a signal after {rounds} rounds of sampling; "
            "the other prompts are always solved, or never",
        )
    return Rollouts(kept[:wanted] or sampled[:wanted], roles.prompts.state_dict(), metrics)


async def answer(
    cfg: Config, roles: Roles, prompts: Sequence[Prompt], *, step: int, first_prompt: int
) -> list[Group]:
    """Scored groups, one per prompt.

    Args:
        first_prompt: prompts of this step that were answered before, so that no two requests share a seed.
    """
    sampling = train_sampling(cfg, step)
    assert sampling.seed is not None
    sampling = replace(sampling, seed=sampling.seed + first_prompt * sampling.num_samples)
    with roles.observe.span("gen"):
        answers = [roles.engine.generate(prompts, sampling)]
        if roles.credit.needs_greedy_answers:
            answers.append(roles.engine.generate(prompts, greedy_sampling(cfg)))
        groups, *greedy = await asyncio.gather(*answers)
    with roles.observe.span("reward"):
        await roles.reward.score(groups, keep_text=kept_texts(cfg, step))
        for extra in greedy:
            await roles.reward.score(extra)
            for group, best in zip(groups, extra, strict=True):
                group.greedy_reward = best.trajectories[0].reward
    return groups


def has_signal(group: Group, dynamic: DynamicSamplingConfig) -> bool:
    """Whether the rewards of the group's answers differ and the share of solved ones is in the range."""
    reward_N = torch.tensor([t.reward for t in group.trajectories], dtype=torch.float64)
    one_group_N = torch.zeros(len(reward_N), dtype=torch.int64)
    inside_N = within_difficulty(
        reward_N,
        one_group_N,
        lowest=dynamic.lowest,
        highest=dynamic.highest,
        solved_above=dynamic.solved_above,
    )
    return bool((informative(reward_N, one_group_N) & inside_N).all())


def selection_metrics(sampled: Sequence[Group], num_kept: int, rounds: int) -> dict[str, float]:
    """Metrics of all sampled groups, dropped ones included: the reward of the kept ones alone says little."""
    scores = [float(t.reward or 0.0) for group in sampled for t in group.trajectories]
    return {
        "rollout/rounds": float(rounds),
        "rollout/prompts_sampled": float(len(sampled)),
        "rollout/kept_share": num_kept / len(sampled),
        "rollout/sampled_score": mean(scores),
    }


def kept_texts(cfg: Config, step: int) -> int:
    """How many answers of a step are kept as text for the user to read."""
    return cfg.run.samples_kept if step % cfg.run.sample_every == 0 or step == 1 else 0
