"""Engines and rewards of a config on this machine, without a trainer.

Who waits for whom: serving() waits until every engine has loaded the model and the rewards are loaded.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.run_shape import RunShape
from hybridrl.config.schema import Config
from hybridrl.hosts.machine import Machine
from hybridrl.launch.devices import Devices
from hybridrl.launch.engines import Engines
from hybridrl.launch.ray_cluster import Cluster, ray_cluster
from hybridrl.launch.served_engines import ServedEngines
from hybridrl.launch.shape import Placement, RunFiles, trainer_layout
from hybridrl.models import spec
from hybridrl.rollout.base import kind_of, layout_in
from hybridrl.workers.reward import RayReward, RewardWorker
from hybridrl.workers.rollout import RayRollout

_STOP_S = 60.0
_VERSION = 0
"""Version of weights that never change."""


@dataclass(frozen=True, slots=True)
class Serving:
    """Engines that answer, and the rule that scores."""

    rollout: RayRollout
    reward: RayReward
    frozen: WorkerGroup | None = None
    """Engines of the frozen player."""

    @property
    def groups(self) -> Sequence[WorkerGroup]:
        return [*self.rollout.groups, *self.reward.groups, *([self.frozen] if self.frozen else [])]


def open_cluster(cfg: Config, machine: Machine) -> contextlib.AbstractContextManager[Cluster]:
    """A Ray of their own for the workers of serving()."""
    placement = Placement.of_config(cfg)
    return ray_cluster(cfg.cluster, placement.per_node, machine)


@contextlib.asynccontextmanager
async def serving(cfg: Config, cluster: Cluster, files: RunFiles) -> AsyncIterator[Serving]:
    """Engines that serve the weights of model.path, and the rewards; leaving the context ends them.

    Args:
        cfg: a config whose models are folders.
        files: where the engines write their logs.

    Raises:
        EngineError, DeadlineError: an engine did not start.
        RewardError: the reward cannot be loaded.
    """
    served = _start(cfg, cluster, files)
    try:
        timeout_s = cfg.cluster.start_timeout_s
        await asyncio.gather(*(group.learn_pids(timeout_s=timeout_s) for group in served.groups))
        frozen = [served.frozen.all("start", timeout_s=timeout_s)] if served.frozen else []
        await asyncio.gather(served.reward.start(), served.rollout.start(), *frozen)
        yield served
    finally:
        stops = [served.frozen.all("stop", timeout_s=_STOP_S)] if served.frozen else []
        await asyncio.gather(served.rollout.stop(), served.reward.stop(), *stops, return_exceptions=True)
        for group in served.groups:
            group.kill()


def _start(cfg: Config, cluster: Cluster, files: RunFiles) -> Serving:
    """Start all processes; nothing is built in them yet."""
    shape, model = RunShape.of(cfg), spec.read(cfg.model.path)
    placement = Placement.of_config(cfg)
    layouts = (
        trainer_layout(cfg, model, shape.parallel),
        layout_in(kind_of(cfg.rollout.engine), model, shape.engine),
    )
    devices = Devices.of(cfg, placement, cluster.gpus, *layouts, parts=shape.engine_parts)
    start = partial(cluster.start, devices.visible)
    engines = Engines(cfg, shape, placement, cluster.engines_rendezvous, version=_VERSION)
    others = ServedEngines(cfg, placement)
    frozen = others.frozen(start, files)
    rollout = engines.start(start, files, frozen=frozen.actors if frozen else ())
    rule = start("reward", RewardWorker, [(cfg.reward, cfg.model.path)], placement.reward)
    return Serving(rollout, RayReward(rule, cfg.cluster, others.judge(start, files)), frozen)
