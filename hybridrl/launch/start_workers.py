"""Starts the workers of a run on its nodes: all of them, or once more those that train and score, while the
engines and the environments stay.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.rules.reward_model_rules import no_rule
from hybridrl.config.run_shape import RunShape
from hybridrl.config.schema import Config
from hybridrl.controller.judged_reward import JudgedReward
from hybridrl.controller.roles import Reward
from hybridrl.faults import Fault
from hybridrl.launch.devices import Devices
from hybridrl.launch.engines import Engines
from hybridrl.launch.inject import plant
from hybridrl.launch.ray_cluster import Cluster
from hybridrl.launch.served_engines import ServedEngines
from hybridrl.launch.shape import Placement, RunFiles
from hybridrl.launch.start_receivers import start_receivers
from hybridrl.launch.start_trainers import Trainers
from hybridrl.observe.progress import Advance
from hybridrl.trainer.checkpoints import Checkpoint
from hybridrl.trainer.store import Mirror
from hybridrl.workers.environment_hosts import EnvironmentHost
from hybridrl.workers.judge import RayJudge
from hybridrl.workers.receivers import Receivers
from hybridrl.workers.reward import RayReward, RewardWorker
from hybridrl.workers.reward_model_ranks import RayRewardModel
from hybridrl.workers.rollout import RayRollout
from hybridrl.workers.trainer import RayTrainer

Value = TypeVar("Value")

_STOP_S = 60.0


@dataclass(frozen=True, slots=True)
class Workers:
    """All workers of a run."""

    rollout: RayRollout
    trainer: RayTrainer
    rule: RayReward
    reward_model: RayRewardModel | None
    environments: WorkerGroup
    """Hosts of environments on nodes of their own; there may be none."""

    frozen: WorkerGroup | None
    """Engines of the frozen player."""

    judge: RayJudge | None
    receivers: Receivers | None = None
    """Receivers of engines on dedicated devices; None: engines share the trainer's."""

    async def stop(self) -> None:
        """Stop what has processes of its own; errors are dropped, because this also ends a run that
        failed."""
        frozen = [self.frozen.all("stop", timeout_s=_STOP_S)] if self.frozen else []
        await asyncio.gather(self.rollout.stop(), self.rule.stop(), *frozen, return_exceptions=True)

    async def start_served(self, timeout_s: float) -> None:
        """Start the engines of models that are not trained, if they do not run, and the workers of the
        reward."""
        starts = [self.frozen.all("start", timeout_s=timeout_s)] if self.frozen else []
        await asyncio.gather(self.rule.start(), *starts)

    @property
    def groups(self) -> list[WorkerGroup]:
        judges = self.reward_model.own_workers if self.reward_model else []
        others = [*judges, *self.hosts, *self.frozen_players, *self.beside_engines]
        return [*self.rollout.groups, *self.trainer.groups, *self.rule.groups, *others]

    @property
    def training(self) -> list[WorkerGroup]:
        """The workers that start again if one of them dies, while the others stay: trainer ranks of all
        models, workers of the reward, and receivers, whose process group has trainer ranks in it."""
        judges = self.reward_model.own_workers if self.reward_model else []
        return [*self.trainer.groups, self.rule.workers, *judges, *self.beside_engines]

    @property
    def beside_engines(self) -> list[WorkerGroup]:
        return [self.receivers.workers] if self.receivers else []

    @property
    def hosts(self) -> list[WorkerGroup]:
        return [self.environments] if len(self.environments) else []

    @property
    def frozen_players(self) -> list[WorkerGroup]:
        return [self.frozen] if self.frozen else []

    @property
    def by_target(self) -> dict[str, WorkerGroup]:
        """The workers that a fault can happen to."""
        return {
            "engine": self.rollout.workers,
            "engine_worker": self.rollout.workers,
            "trainer": self.trainer.workers,
            "reward": self.rule.workers,
        }

    def rewards(self, cfg: Config) -> tuple[Reward, Reward]:
        """The reward of answers that are trained on, and that of held-out answers: the rule's, if there is a
        rule."""
        if cfg.reward_model is None or self.reward_model is None:
            return self.rule, self.rule
        alone = no_rule(cfg)
        judged = JudgedReward(self.rule, self.reward_model, cfg.reward_model.weight, judges_alone=alone)
        return judged, judged if alone else self.rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """How the workers of a run start."""

    cfg: Config
    shape: RunShape
    placement: Placement
    cluster: Cluster
    devices: Devices
    environment_nodes: Sequence[int]
    files: RunFiles
    mirror: Mirror | None
    say: Callable[[str], None]
    """Tells the user that an engine was lost, serves again, or joins."""

    warn: Callable[[str, str], None]
    """Called with a kind and a text if a checkpoint cannot be written and the run goes on."""

    def all(self, faults: Sequence[Fault]) -> Workers:
        """Start all processes; nothing is built in them yet.

        Args:
            faults: those that engines are to suffer which take the place of others.
        """
        cfg, nodes, placement = self.cfg, self.environment_nodes, self.placement
        hosts = self._start("environment", EnvironmentHost, [(cfg.environment,)] * len(nodes), nodes)
        served = ServedEngines(cfg, placement)
        frozen = served.frozen(self._start, self.files)
        given = self.cluster.engines_rendezvous, faults, self.say, self.cluster.late
        engines = Engines(cfg, self.shape, placement, *given)
        rollout = engines.start(self._start, self.files, hosts.actors, frozen.actors if frozen else ())
        return self._beside(rollout, hosts, frozen, served.judge(self._start, self.files))

    def again(self, workers: Workers, rollout: RayRollout) -> Workers:
        """Start once more the processes that train and score, which have ended.

        Args:
            rollout: the engines, which stay, as do environments, judges and frozen players of `workers`.
        """
        return self._beside(rollout, workers.environments, workers.frozen, workers.judge)

    async def end_training(self, workers: Workers) -> None:
        """End the processes that train and score, whatever they do, and wait until they are gone."""
        await asyncio.gather(*(self.cluster.end(group) for group in workers.training))

    async def build(
        self,
        workers: Workers,
        checkpoint: Checkpoint | None,
        faults: Sequence[Fault],
        advance: Advance,
        *,
        again: bool = False,
    ) -> list[str]:
        """Build models and engines. On GPUs that they share, the engines start before the trainer: an engine
        claims its share of the memory that is free on its GPU; the trainer gets the rest, and this share too
        while the engine sleeps.

        Args:
            faults: those that the workers are to suffer.
            advance: gets the number of workers that are ready, and of all.
            again: the engines have started before.

        Returns:
            Notes for the user about the checkpoint.
        """
        started = workers.training if again else workers.groups

        def of(groups: Sequence[WorkerGroup]) -> list[WorkerGroup]:
            return [group for group in groups if any(group is one for one in started)]

        timeout_s, rollout, judges = self.cfg.cluster.start_timeout_s, workers.rollout, workers.reward_model
        await asyncio.gather(*(group.learn_pids(timeout_s=timeout_s) for group in started))
        await plant(faults, {target: group for target, group in workers.by_target.items() if of([group])})
        ready, served = (
            Ready(advance, sum(len(group.there) for group in started)),
            [*workers.rule.groups, *workers.frozen_players],
        )
        start_served = partial(ready.after, partial(workers.start_served, timeout_s), of(served))
        start_engines = [] if again else [partial(ready.after, rollout.start, rollout.groups)]
        engines_first = bool(self.devices.visible) and not self.shape.separate
        others = list[Awaitable[Any]]()
        if engines_first:
            for start in (start_served, *start_engines):
                await start()  # engines that are not trained take their memory before the others
            await rollout.sleep()
        else:
            others += [start_served(), *(start() for start in start_engines)]
        if judges:
            others.append(ready.after(judges.build, judges.own_workers))
        folder, step = (checkpoint.folder, checkpoint.step) if checkpoint else (None, 0)
        build = partial(workers.trainer.build, folder, step)
        build = ready.after(build, of([*workers.trainer.groups, *workers.hosts, *workers.beside_engines]))
        notes, _ = await asyncio.gather(build, asyncio.gather(*others))
        return notes

    def _beside(
        self, rollout: RayRollout, hosts: WorkerGroup, frozen: WorkerGroup | None, judge: RayJudge | None
    ) -> Workers:
        """Start the processes that train and score beside engines and environments."""
        cfg = self.cfg
        trainers = Trainers(cfg, self.shape, self.placement, self.cluster.rendezvous)
        trainer = trainers.start(self._start, self.files, self.warn, self.mirror)
        rule = self._start("reward", RewardWorker, [(cfg.reward, cfg.model.path)], self.placement.reward)
        reward_model = trainers.reward_model(self._start, trainer)
        reward = RayReward(rule, cfg.cluster, judge)
        topology, rendezvous = self.devices.topology, self.cluster.rendezvous
        receivers = start_receivers(cfg, self.shape, self.placement, topology, rendezvous, self._start)
        return Workers(rollout, trainer, reward, reward_model, hosts, frozen, judge, receivers)

    def _start(self, name: str, worker: Any, arguments: Sequence[tuple], nodes: Sequence[int]) -> WorkerGroup:
        return self.cluster.start(self.devices.visible, name, worker, arguments, nodes)


class Ready:
    """Counts the workers that are ready."""

    def __init__(self, advance: Advance, total: int) -> None:
        self._advance, self._total, self._done = advance, total, 0

    async def after(self, start: Callable[[], Awaitable[Value]], groups: Sequence[WorkerGroup]) -> Value:
        """Start workers and count them; returns what the start returns."""
        value = await start()
        self._done += sum(len(group.there) for group in groups)
        self._advance(self._done, self._total)
        return value
