"""The verbs of a run: prompts, sample, score, train_step, push_weights, evaluate, save.

loop.py is written on them, and so is a loop of your own (docs/python.md). The loop takes its groups from a
RolloutStream, which samples and scores while training goes on; sample and score do the same in turn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybridrl.batch import Batch, Minibatch
from hybridrl.config.run_shape import engines_sleep
from hybridrl.config.schema import Config
from hybridrl.controller.roles import Roles
from hybridrl.controller.sampling import group_task
from hybridrl.controller.shown import evenly, kept_texts, of_groups
from hybridrl.controller.stream import refuse_failed, warn_of_overdue
from hybridrl.controller.worth_reading import NUM_SUSPICIOUS, worth_reading
from hybridrl.errors import VersionError
from hybridrl.saved_groups import SavedGroups, pack_groups
from hybridrl.types import Group, GroupTask, PolicyVersion, Prompt, StepReport, SwapReport, mean


@dataclass(frozen=True, slots=True)
class TrainedStep:
    """One policy update that is done."""

    batch: Batch
    minibatches: Sequence[Minibatch]
    reports: Sequence[StepReport]
    metrics: Mapping[str, float]
    """What the trainer measured when it loaded the batch, and the age of the answers."""


_FOREIGN = 2**61
"""Index of the first prompt that was not given out; no stream has as many."""


class Verbs:
    """A run between its start and its end. No call is made while another one is going on."""

    def __init__(self, cfg: Config, roles: Roles) -> None:
        self._cfg, self._roles = cfg, roles
        self._index: dict[int, tuple[int, Prompt]] = {}
        """id of a prompt that was given out -> its index in the stream, and itself, which keeps its id."""

        self._foreign = 0

    @property
    def version(self) -> PolicyVersion:
        """Policy updates that are done."""
        return self._roles.trainer.version

    def prompts(self, count: int | None = None) -> list[Prompt]:
        """The next training prompts.

        Args:
            count: None: those of one step, batch.prompts_per_step.
        """
        first = self._roles.prompts.position
        found = self._roles.prompts.take(self._cfg.batch.prompts_per_step if count is None else count)
        self._index |= {id(prompt): (first + i, prompt) for i, prompt in enumerate(found)}
        return found

    async def sample(self, prompts: Sequence[Prompt]) -> list[Group]:
        """Answer prompts with the weights that were pushed last; one group per prompt, in order.

        A prompt of `prompts` is sampled with the seed that the loop would give it.

        Raises:
            VersionError: no weights were pushed yet.
            EngineError: an engine failed.
            EnvironmentFailedError: too many episodes failed.
        """
        tasks = [self._task(prompt) for prompt in prompts]
        order = [task.index for task in tasks]
        found: dict[int, Group] = {}
        with self._roles.observe.span("gen"):
            await self._roles.engine.submit(tasks)
            while len(found) < len(tasks):
                found |= {group.index: group for group in await self._roles.engine.completed()}
        groups = [found[index] for index in order]
        refuse_failed(groups)
        warn_of_overdue(groups, self._roles.observe)
        return groups

    async def score(self, groups: Sequence[Group]) -> None:
        """Give every answer its reward, in place."""
        with self._roles.observe.span("reward"):
            keep = evenly(of_groups(groups), kept_texts(self._cfg, self.version + 1))
            greedy = [group.greedy for group in groups if group.greedy is not None]
            await self._roles.reward.score(groups, keep_text=keep)
            if greedy:
                await self._roles.reward.score(greedy)
        for group in groups:
            if group.greedy is not None:
                group.greedy_reward = group.greedy.trajectories[0].reward

    async def train_step(self, groups: Sequence[Group]) -> TrainedStep:
        """One policy update on scored groups; the engines sleep meanwhile if they share the trainer's memory.

        Raises:
            VersionError: an answer is older than batch.max_lag allows.
        """
        roles, cfg, step = self._roles, self._cfg, self.version + 1
        if engines_sleep(cfg):
            await roles.engine.sleep()
        oldest = step - 1 - cfg.batch.max_lag if cfg.batch.stale == "mask" else None
        batch = Batch.pack(step, groups, oldest=oldest)
        if oldest is None:
            refuse_stale(batch, cfg.batch.max_lag)
        with roles.observe.span("adv"):
            for finding in roles.credit(batch):
                roles.observe.warn(finding.guard, finding.text)
        minibatches = roles.pack_minibatches(batch)
        with roles.observe.span("old_log_prob"):
            measured = await roles.trainer.load(batch, minibatches)
        with roles.observe.span("update_actor"):
            reports = [await roles.trainer.step(minibatch.index) for minibatch in minibatches]
        for warning in reports[-1].warnings:
            roles.observe.warn(*warning)
        return TrainedStep(batch, minibatches, reports, {**lag_metrics(batch), **measured})

    async def push_weights(self) -> SwapReport:
        """Put the trainer's weights into every engine."""
        with self._roles.observe.span("update_weights"):
            return await self._roles.sync.push(self.version)

    async def publish(self, trained: TrainedStep, swap: SwapReport | None, more: Mapping[str, float]) -> None:
        """Write down the metrics of a policy update, and a few of its rollouts.

        Args:
            swap: of its weights; None: they were not pushed.
            more: further metrics.
        """
        observe, batch = self._roles.observe, trained.batch
        metrics = {**more, **trained.metrics}
        observe.step(batch.step, batch, trained.reports, swap, metrics, minibatches=trained.minibatches)
        if kept_texts(self._cfg, batch.step):
            with observe.span("inspect"):
                why = worth_reading(batch)
                found = await self._roles.trainer.inspect([*why], NUM_SUSPICIOUS)
            observe.rollouts(batch, found, why)

    async def evaluate(self) -> dict[str, float] | None:
        """Held-out metrics of the weights that were pushed last; None: the config has no held-out data."""
        if self._roles.evaluator is None:
            return None
        with self._roles.observe.span("testing"):
            metrics = await self._roles.evaluator.run(self.version)
            self._roles.observe.evaluation(self.version, metrics)
        return metrics

    async def save(self, groups: SavedGroups | None = None, *, wait: bool = True) -> None:
        """Write a checkpoint, from which `hybridrl launch --resume` goes on.

        Args:
            groups: the open groups; None: there are none.
            wait: return when it is committed.
        """
        roles, groups = self._roles, pack_groups([], []) if groups is None else groups
        with roles.observe.span("save_checkpoint"):
            progress = {"prompts": roles.prompts.state_dict(), "credit": roles.credit.state_dict()}
            await roles.trainer.save(self.version, {**progress, "open": groups.facts}, groups)
            if wait:
                await roles.trainer.finish_saving()

    def _task(self, prompt: Prompt) -> GroupTask:
        index, _ = self._index.pop(id(prompt), (None, None))
        if index is None:  # a prompt of the user's own, or one that is answered again
            self._foreign += 1
            index = _FOREIGN + self._foreign
        return group_task(self._cfg, index, prompt, greedy=self._roles.credit.needs_greedy_answers)


def lag_metrics(batch: Batch) -> dict[str, float]:
    lags = [batch.step - 1 - trajectory.version for trajectory in batch.trajectories]
    return {"rollout/lag/mean": mean(lags), "rollout/lag/max": float(max(lags))}


def refuse_stale(batch: Batch, max_lag: int) -> None:
    oldest = min(trajectory.version for trajectory in batch.trajectories)
    if oldest < batch.step - 1 - max_lag:
        raise VersionError(
            f"step {batch.step} got an answer of policy version {oldest}; "
            f"max_lag = {max_lag} allows {batch.step - 1 - max_lag}"
        )
