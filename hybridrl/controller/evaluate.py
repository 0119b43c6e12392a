"""Held-out evaluation: mean@k and best@k of every data source, with the engines that serve the policy being
trained."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from hybridrl.config.schema import Config
from hybridrl.controller.roles import Reward, RolloutEngine
from hybridrl.controller.sampling import heldout_sampling, response_limit
from hybridrl.controller.shown import evenly, of_groups
from hybridrl.controller.unjudged import leave_out, num_episodes, refuse_unjudged
from hybridrl.types import Group, Prompt, Sampling, Trajectory, mean

_LEAST_ANSWERS, _MOST_PARTS = 256, 50
"""Answers of a part, and parts of an evaluation: how fine its progress is told."""


class Evaluator:
    """Answers every held-out prompt k times; the prompts are fixed for the run."""

    def __init__(
        self,
        cfg: Config,
        prompts: Sequence[Prompt],
        engine: RolloutEngine,
        reward: Reward,
        show: Callable[[int, Sequence[Group]], None] | None = None,
        advance: Callable[[int, int], None] | None = None,
    ) -> None:
        """
        Args:
            show: gets the step and the scored answers, of which run.samples_kept have their text.
            advance: gets the number of prompts that are answered, and of all.
        """
        self._cfg, self._prompts, self._engine, self._reward = cfg, prompts, engine, reward
        self._show, self._advance = show, advance

    async def _answers(self, sampling: Sampling) -> list[Group]:
        """A group for each prompt, in order; prompts with equal limits are answered together."""
        groups: dict[int, Group] = {}

        async def answer(indices: Sequence[int], own: Sampling) -> None:
            found = await self._engine.generate([self._prompts[i] for i in indices], own)
            groups.update(zip(indices, found, strict=True))
            if self._advance:
                self._advance(len(groups), len(self._prompts))

        for indices, own in _limits(self._cfg, self._prompts, sampling):
            await asyncio.gather(*(answer(part, of_part) for part, of_part in _parts(indices, own)))
        return [groups[i] for i in range(len(self._prompts))]

    async def run(self, step: int) -> dict[str, float]:
        """Metrics of the policy that the engines serve, named val-core/<source>/reward/mean_at_k."""
        groups = await self._answers(heldout_sampling(self._cfg, step))
        shown = evenly(of_groups(groups), self._cfg.run.samples_kept) if self._show else ()
        await self._reward.score(groups, keep_text=shown)
        leave_out(groups)
        failures = [why for group in groups for why in group.unjudged]
        judged, most = num_episodes(groups), self._cfg.reward.max_unjudged
        refuse_unjudged(failures, judged=judged, most=most, what=f"the evaluation after step {step}")
        if self._show:
            self._show(step, groups)
        lost = {"val-aux/unjudged": float(len(failures))} if failures else {}
        return heldout_metrics([group for group in groups if group.trajectories]) | lost


def _limits(
    cfg: Config, prompts: Sequence[Prompt], sampling: Sampling
) -> Iterator[tuple[list[int], Sampling]]:
    """Indices of the prompts with equal limits, and their sampling; the seed of a prompt depends on its
    index alone."""
    by_limit: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        by_limit[response_limit(cfg, prompt, sampling.max_response_tokens)].append(i)
    for limit, indices in by_limit.items():
        seed = None if sampling.seed is None else sampling.seed + indices[0] * sampling.num_samples
        yield indices, replace(sampling, max_response_tokens=limit, seed=seed)


def _parts(indices: Sequence[int], sampling: Sampling) -> Iterator[tuple[Sequence[int], Sampling]]:
    """Prompts in parts, whose answers are those of one call: an answer's seed depends on its place in all."""
    least = max(-(-_LEAST_ANSWERS // sampling.num_samples), -(-len(indices) // _MOST_PARTS))
    for first in range(0, len(indices), least):
        seed = None if sampling.seed is None else sampling.seed + first * sampling.num_samples
        yield indices[first : first + least], replace(sampling, seed=seed)


def heldout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """mean@k over prompts of the mean reward, best@k of the best one, per source; k is the size of the
    groups."""
    rewards = defaultdict(list)
    for group in groups:
        rewards[group.prompt.source].append([float(t.reward or 0.0) for t in group.trajectories])
    metrics = {}
    for source, per_prompt in rewards.items():
        k = max(map(len, per_prompt))
        metrics[f"val-core/{source}/reward/mean_at_{k}"] = mean([mean(r) for r in per_prompt])
        metrics[f"val-core/{source}/reward/best_at_{k}"] = mean([max(r) for r in per_prompt])
    return metrics | episode_metrics(groups)


def episode_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """mean@k and best@k, over episodes, of what environments report, and the mean number of turns, per
    source; nothing without an environment."""
    episodes: dict[str, list[list[Trajectory]]] = defaultdict(list)
    for group in groups:
        first = [t for t in group.trajectories if t.ended is not None and t.agent == 0]
        if first:
            episodes[group.prompt.source].append(first)
    metrics = {}
    for source, per_prompt in episodes.items():
        k = max(map(len, per_prompt))
        turns = [mean([float(t.turns) for t in first]) for first in per_prompt]
        metrics[f"val-aux/{source}/num_turns/mean_at_{k}"] = mean(turns)
        for name in sorted({name for first in per_prompt for t in first for name in t.reported}):
            values = [[t.reported.get(name, 0.0) for t in first] for first in per_prompt]
            metrics[f"val-aux/{source}/{name}/mean_at_{k}"] = mean([mean(own) for own in values])
            metrics[f"val-aux/{source}/{name}/best_at_{k}"] = mean([max(own) for own in values])
    return metrics
