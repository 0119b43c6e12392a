"""Held-out evaluation: mean@k and best@k of every data source, with the engines that serve the policy being
trained."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from hybridrl.config.schema import Config
from hybridrl.controller.roles import Reward, RolloutEngine
from hybridrl.controller.sampling import heldout_sampling
from hybridrl.types import Group, Prompt, mean


class Evaluator:
    """Answers every held-out prompt k times; the prompts are fixed for the run."""

    def __init__(
        self,
        cfg: Config,
        prompts: Sequence[Prompt],
        engine: RolloutEngine,
        reward: Reward,
        show: Callable[[int, Sequence[Group]], None] | None = None,
    ) -> None:
        """
        Args:
            show: gets the step and the scored answers, of which run.samples_kept have their text.
        """
        self._cfg, self._prompts, self._engine, self._reward = cfg, prompts, engine, reward
        self._show = show

    async def run(self, step: int) -> dict[str, float]:
        """Metrics of the policy that the engines serve, named val-core/<source>/reward/mean_at_k."""
        groups = await self._engine.generate(self._prompts, heldout_sampling(self._cfg, step))
        await self._reward.score(groups, keep_text=self._cfg.run.samples_kept if self._show else 0)
        if self._show:
            self._show(step, groups)
        return heldout_metrics(groups)


def heldout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """mean@k over prompts of the mean reward, best@k of the best one, per source; k is the size of the
    groups."""
    rewards = defaultdict(list)
    for group in groups:
        rewards[group.prompt.source].append([float(t.reward or 0.0) for t in group.trajectories])
    metrics = {}
    for source, per_prompt in rewards.items():
        k = len(per_prompt[0])
        metrics[f"val-core/{source}/reward/mean_at_{k}"] = mean([mean(r) for r in per_prompt])
        metrics[f"val-core/{source}/reward/best_at_{k}"] = mean([max(r) for r in per_prompt])
    return metrics
