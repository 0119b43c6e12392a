"""A run of reinforcement learning, driven from this machine: its workers, and the roles that the loop knows.

prepare     prompts and reward: no worker is started before these are in order
workers     engines, trainer ranks and reward workers start together; engines export their parameters,
            trainer ranks map them
loop.run    until the last step
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import ray

from hybridrl.algorithms.lag import lag_warning
from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.files import atomic_write
from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.reward_model_rules import no_rule
from hybridrl.config.run_shape import RunShape, num_gpus
from hybridrl.config.schema import Config
from hybridrl.controller import loop
from hybridrl.controller.advantage import load_credit
from hybridrl.controller.evaluate import Evaluator
from hybridrl.controller.judged_reward import JudgedReward
from hybridrl.controller.roles import PolicyTrainer, Reward, Roles, WeightSync
from hybridrl.data.packing import pack_minibatches
from hybridrl.errors import DeadlineError, HybridRLError, UserError
from hybridrl.faults import FAULTS_FILE, Fault
from hybridrl.hosts.copy_speed import copy_gb_s
from hybridrl.hosts.machine import GIB, Machine
from hybridrl.launch.autopsy import Scene, gather, text_of
from hybridrl.launch.devices import Devices
from hybridrl.launch.engines import Engines
from hybridrl.launch.inject import plant
from hybridrl.launch.loop_guard import guard
from hybridrl.launch.model_folders import in_folders
from hybridrl.launch.prepare import prepare
from hybridrl.launch.ray_address import address_of
from hybridrl.launch.ray_cluster import Cluster, ray_cluster
from hybridrl.launch.run import Run
from hybridrl.launch.served_engines import ServedEngines
from hybridrl.launch.shape import Placement, Resume, trainer_layout
from hybridrl.launch.start_trainers import Trainers
from hybridrl.launch.stop import StopRequest
from hybridrl.launch.stored import mirror_of
from hybridrl.models import spec
from hybridrl.models.cost import attention_length
from hybridrl.observe.observer import RunObserver
from hybridrl.observe.progress import Advance
from hybridrl.observe.run_session import WHY_FILE
from hybridrl.observe.terminal import Terminal
from hybridrl.rollout.base import kind_of, layout_in
from hybridrl.saved_groups import SavedGroups
from hybridrl.trainer import saved_groups as saved_groups_file
from hybridrl.wording import counted
from hybridrl.workers.bundling import BundlingTrainer
from hybridrl.workers.environment_hosts import EnvironmentHost
from hybridrl.workers.fallback import connect
from hybridrl.workers.planted import around_observer
from hybridrl.workers.reward import RayReward, RewardWorker
from hybridrl.workers.reward_model_ranks import RayRewardModel
from hybridrl.workers.rollout import RayRollout
from hybridrl.workers.trainer import RayTrainer

Value = TypeVar("Value")

_STOP_S = 60.0

Place = Literal["local", "ray"]
"""A Ray that is started here, or one that runs already."""


class RLRun(Run[Config, RunObserver]):
    following = (
        ("hybridrl launch configs/smollm2_reasoning_gym.yaml", "a real 135 M model"),
        ("hybridrl config explain algorithm", "what else there is to choose"),
    )

    def __init__(
        self,
        loaded: LoadedConfig,
        terminal: Terminal,
        stop: StopRequest,
        *,
        on: Place,
        resume: Resume,
        faults: Sequence[Fault] = (),
    ) -> None:
        """
        Args:
            faults: those that the run is to suffer.

        Raises:
            ConfigError: no Ray to join is named.
        """
        self._here = in_folders(loaded)
        cfg = self._here.config
        super().__init__(loaded, cfg, spec.read(cfg.model.path), terminal, stop, resume=resume)
        self._open: Mapping[str, Any] = {}
        self._groups: Sequence[WorkerGroup] = ()
        record = str((self.files.folder / FAULTS_FILE).absolute())
        self._faults = [replace(fault, record=record) for fault in faults]
        self._address = address_of(cfg.cluster.ray) if on == "ray" else None
        self._machine, self._shape = Machine.here(), RunShape.of(cfg)
        self._placement = Placement.of(self._shape, cfg.cluster.nodes)

    @property
    def about_itself(self) -> Sequence[tuple[str, str]]:
        folder = self.files.folder
        evaluation = [(f"hybridrl eval {folder}", "the held-out set again, with intervals")]
        return [
            *(evaluation if self.cfg.data.heldout is not None else ()),
            (f"hybridrl chat {folder}", "ask the policy yourself"),
        ]

    @property
    def facts(self) -> Mapping[str, Any]:
        return {
            "machine": {
                "cores": self._machine.cores,
                "memory_gib": round(self._machine.memory_bytes / GIB, 1),
                "copy_gb_s": round(copy_gb_s(), 2),
            },
            "engine": dict(kind_of(self.cfg.rollout.engine).versions(self.cfg)),
        }

    def prepare(self, progress: Mapping[str, Any] | None) -> None:
        moe, skips = self.cfg.actor.moe, self.cfg.batch.skip_zero_advantages
        skips = skips and not (moe.aux_loss or moe.z_loss)  # these have a gradient at every token
        self._prepared = prepare(self._here)
        self._credit = load_credit(self.cfg.algorithm, skips_zeros=skips)
        self.terminal.say("data", self._prepared.describe())
        for warning in (*self._prepared.warnings, lag_warning(self.cfg)):
            if warning is not None:
                self.terminal.warn(warning)
        if progress:
            self._prepared.train.load_state_dict(progress["prompts"])
            self._credit.load_state_dict(progress["credit"])
            self._open = progress.get("open", {})

    def observer(self, resume_step: int | None) -> RunObserver:
        devices = num_gpus(self.cfg.cluster) or 1
        pieces = self._prepared.tokenizer.pieces
        return RunObserver(
            self.cfg, self.terminal, resume_step=resume_step, num_devices=devices, pieces=pieces
        )

    def start_ray(self) -> contextlib.AbstractContextManager[Cluster]:
        per_node, others = self._placement.per_node, len(self._environment_nodes)
        return ray_cluster(self.cfg.cluster, per_node, self._machine, self._address, others=others)

    @property
    def _environment_nodes(self) -> range:
        """Nodes that run environments alone; they follow the others."""
        first, environment = self.cfg.cluster.nodes, self.cfg.environment
        return range(first, first + (environment.nodes if environment else 0))

    @contextlib.asynccontextmanager
    async def workers(self) -> AsyncIterator[tuple[RayTrainer, Roles]]:
        cfg, shape = self.cfg, self._shape
        engine = layout_in(kind_of(cfg.rollout.engine), self.model, shape.engine)
        layouts = trainer_layout(cfg, self.model, shape.parallel), engine
        devices = Devices.of(cfg, self._placement, self.cluster.gpus, *layouts, parts=shape.engine_parts)
        self._mirror = mirror_of(cfg.run, self.files, self.observe.warn)
        workers = self._start(devices)
        self._groups = workers.groups
        try:
            start = counted(sum(map(len, workers.groups)), "worker starts", "workers start")
            text = f"{start}, {self.cluster.described}"
            with self.terminal.working("ray", text, "workers ready") as advance:
                await self._build(workers, advance, engines_first=bool(devices.visible))
                sync = await connect(
                    cfg.rollout.weight_path,
                    workers.trainer,
                    workers.rollout,
                    engine,
                    cfg.cluster,
                    self.observe.warn,
                    devices.topology,
                    cfg.rollout.swap,
                )
            workers.rollout.engines.give_weights = sync.join
            yield workers.trainer, self._roles(workers, sync)
        except HybridRLError as error:
            await self._explain(error, workers)
            raise
        finally:
            await asyncio.gather(
                workers.rollout.stop(), workers.rule.stop(), workers.stop_frozen(), return_exceptions=True
            )
            for group in workers.groups:
                group.kill()
            if self._mirror:
                self._mirror.close()

    async def _explain(self, error: HybridRLError, workers: "Workers") -> None:
        """Write down what every process was doing when the run failed."""
        if isinstance(error, UserError):
            return
        now, groups = self.observe, workers.groups
        scene = Scene(error=error, step=now.step_now, running=now.running, groups=groups)
        atomic_write(self.files.folder / WHY_FILE, text_of(replace(scene, stacks=await gather(groups))))
        self.terminal.warn(f"hybridrl why {self.files.folder} shows what every process was doing")

    def guarded(self) -> contextlib.AbstractContextManager[None]:
        cluster = self.cfg.cluster
        return guard(cluster.deadlines.dispatch_s or cluster.step_timeout_s, self._end_hanging)

    def _end_hanging(self, stack: str) -> None:
        """End this process, whose event loop stands still, and say where. Called in another thread: what the
        hanging one holds, as the lock of the terminal, cannot be had."""
        cluster = self.cfg.cluster
        key = "deadlines.dispatch_s" if cluster.deadlines.dispatch_s else "step_timeout_s"
        limit_s = cluster.deadlines.dispatch_s or cluster.step_timeout_s
        error = DeadlineError(
            f"the driver hangs: it did not return to its event loop in {limit_s:g} s",
            where=f"hybridrl why {self.files.folder} shows where",
            fix=f"raise cluster.{key} if it computes that long",
        )
        now, groups = self.observe, self._groups
        scene = Scene(error=error, step=now.step_now, running=now.running, groups=groups)
        atomic_write(self.files.folder / WHY_FILE, text_of(replace(scene, stacks={"driver": stack})))
        now.give_up(f"DeadlineError: {error.what}")
        os.write(2, f"\nerror: {error.what}\n  {error.where}\n  {error.fix}\n".encode())
        os._exit(error.exit_code)

    def train(self, roles: Roles) -> Coroutine[Any, Any, None]:
        return loop.run(self.cfg, roles, self._open_groups())

    def _open_groups(self) -> SavedGroups | None:
        """The open groups of the checkpoint; their tokens go into the object store."""
        if self.checkpoint is None or not self._open:
            return None
        scalars, blocks = saved_groups_file.read(self.checkpoint.folder)
        return SavedGroups(
            tuple(self._open["unfinished"]), tuple(self._open["parts"]), scalars, tuple(map(ray.put, blocks))
        )

    def _start(self, devices: Devices) -> "Workers":
        """Start all processes; nothing is built in them yet."""
        cfg, placement, cluster = self.cfg, self._placement, self.cluster
        start = partial(cluster.start, devices.visible)
        engines = Engines(
            cfg, self._shape, placement, cluster.engines_rendezvous, self._faults, self.terminal.warn
        )
        nodes = self._environment_nodes
        hosts = start("environment", EnvironmentHost, [(cfg.environment,)] * len(nodes), nodes)
        served = ServedEngines(cfg, placement)
        frozen = served.frozen(start, self.files)
        rollout = engines.start(start, self.files, hosts.actors, frozen.actors if frozen else ())
        trainers = Trainers(cfg, self._shape, placement, cluster.rendezvous)
        trainer = trainers.start(start, self.files, self.observe.warn, self._mirror)
        rule = start("reward", RewardWorker, [(cfg.reward, cfg.model.path)], placement.reward)
        reward_model = trainers.reward_model(start, trainer)
        judge = served.judge(start, self.files)
        return Workers(rollout, trainer, RayReward(rule, cfg.cluster, judge), reward_model, hosts, frozen)

    async def _build(self, workers: "Workers", advance: Advance, *, engines_first: bool) -> None:
        """
        Args:
            advance: gets the number of workers that are ready, and of all.
            engines_first: start the engines before the trainer. An engine claims its share of the memory that
                is free on its GPU; the trainer gets the rest, and this share too while the engine sleeps.
        """
        timeout_s, rollout = self.cfg.cluster.start_timeout_s, workers.rollout
        await asyncio.gather(*(group.learn_pids(timeout_s=timeout_s) for group in workers.groups))
        await plant(self._faults, workers.by_target)
        ready, judges = Ready(advance, sum(map(len, workers.groups))), workers.reward_model
        checkpoint = self.checkpoint.folder if self.checkpoint else None
        build = partial(workers.trainer.build, checkpoint, self.start_step)
        served = partial(workers.start_served, timeout_s)
        start_served = partial(ready.after, served, [*workers.rule.groups, *workers.frozen_players])
        start_engines = partial(ready.after, rollout.start, rollout.groups)
        if engines_first:
            await start_served()  # they take their memory before the others
            await start_engines()
            await rollout.sleep()
        others = [] if engines_first else [start_served(), start_engines()]
        if judges:
            others.append(ready.after(judges.build, judges.own_workers))
        build = ready.after(build, [*workers.trainer.groups, *workers.hosts])
        notes, _ = await asyncio.gather(build, asyncio.gather(*others))
        for note in notes:
            self.observe.warn("resume", note)

    def _bundling(self, trainer: RayTrainer) -> PolicyTrainer:
        choice, config = self.cfg.run.bundle, self.files.folder / "resolved.yaml"
        if not (choice.on_error or choice.every):
            return trainer
        return BundlingTrainer(trainer, choice, self.files.bundles, config, self.observe.warn)

    def _roles(self, workers: "Workers", sync: WeightSync) -> Roles:
        cfg, heldout = self.cfg, self._prepared.heldout
        reward, heldout_reward = workers.rewards(cfg)
        length = attention_length(self.model)
        return Roles(
            prompts=self._prepared.train,
            engine=workers.rollout,
            reward=reward,
            credit=self._credit,
            pack_minibatches=lambda batch: pack_minibatches(
                batch,
                minibatch_prompts=cfg.batch.minibatch_prompts or cfg.batch.prompts_per_step,
                epochs=cfg.batch.epochs,
                num_ranks=self._shape.parallel.dp or 1,
                microbatch_tokens=cfg.actor.microbatch_tokens,
                seed=cfg.run.seed,
                attention_length=length,
            ),
            trainer=self._bundling(workers.trainer),
            sync=sync,
            evaluator=(
                Evaluator(
                    cfg, heldout, workers.rollout, heldout_reward, self.observe.heldout, self.terminal.advance
                )
                if heldout
                else None
            ),
            observe=around_observer(
                self.observe, [fault for fault in self._faults if fault.target == "driver"], self.start_step
            ),
            stop_requested=self.stop.requested,
            take_judge_counts=workers.rule.take_counts,
        )


class Ready:
    """Counts the workers that are ready."""

    def __init__(self, advance: Advance, total: int) -> None:
        self._advance, self._total, self._done = advance, total, 0

    async def after(self, start: Callable[[], Awaitable[Value]], groups: Sequence[WorkerGroup]) -> Value:
        """Start workers and count them; returns what the start returns."""
        value = await start()
        self._done += sum(map(len, groups))
        self._advance(self._done, self._total)
        return value


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

    async def stop_frozen(self) -> None:
        if self.frozen:
            await self.frozen.all("stop", timeout_s=_STOP_S)

    async def start_served(self, timeout_s: float) -> None:
        """Start the engines of models that are not trained, and the workers of the reward."""
        starts = [self.frozen.all("start", timeout_s=timeout_s)] if self.frozen else []
        await asyncio.gather(self.rule.start(), *starts)

    @property
    def groups(self) -> list[WorkerGroup]:
        judges = self.reward_model.own_workers if self.reward_model else []
        others = [*judges, *self.hosts, *self.frozen_players]
        return [*self.rollout.groups, *self.trainer.groups, *self.rule.groups, *others]

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
