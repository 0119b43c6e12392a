"""A run of reinforcement learning, driven from this machine: its workers, and the roles that the loop knows.

prepare     prompts and reward: no worker is started before these are in order
workers     engines, trainer ranks and reward workers start together; engines export their parameters,
            trainer ranks map them
loop.run    until the last step
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import ray

from hybridrl.algorithms.lag import lag_warning, mismatch_warning
from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.files import atomic_write
from hybridrl.config.load import LoadedConfig
from hybridrl.config.run_shape import RunShape, idle_warning, num_gpus
from hybridrl.config.schema import Config
from hybridrl.controller import loop
from hybridrl.controller.advantage import CreditAssignment, load_credit
from hybridrl.controller.evaluate import Evaluator
from hybridrl.controller.roles import PolicyTrainer, Roles, WeightSync
from hybridrl.data.packing import pack_minibatches
from hybridrl.errors import DeadlineError, HybridRLError, UserError
from hybridrl.faults import FAULTS_FILE, Fault
from hybridrl.hosts.copy_speed import copy_gb_s
from hybridrl.hosts.machine import GIB, Machine
from hybridrl.launch.autopsy import Scene, gather, text_of
from hybridrl.launch.devices import Devices
from hybridrl.launch.loop_guard import guard
from hybridrl.launch.model_folders import in_folders
from hybridrl.launch.prepare import prepare
from hybridrl.launch.ray_address import address_of
from hybridrl.launch.ray_cluster import Cluster, ray_cluster
from hybridrl.launch.restarts import Restarts
from hybridrl.launch.run import Run
from hybridrl.launch.shape import Placement, Resume, trainer_layout
from hybridrl.launch.start_workers import Starts, Workers
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
from hybridrl.workers.fallback import connect
from hybridrl.workers.planted import around_observer
from hybridrl.workers.trainer import RayTrainer

Place = Literal["local", "ray"]
"""A Ray that is started here, or one that runs already."""

_WARNINGS = (lag_warning, idle_warning, mismatch_warning)
"""Ask a config for a reason to warn before the run."""


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
        restarts: Restarts | None = None,
    ) -> None:
        """
        Args:
            faults: those that the run is to suffer.
            restarts: whether trainer ranks start again after an error; None: they do not.

        Raises:
            ConfigError: no Ray to join is named.
        """
        self._here = in_folders(loaded)
        cfg = self._here.config
        super().__init__(loaded, cfg, spec.read(cfg.model.path), terminal, stop, resume=resume)
        self._open: Mapping[str, Any] = {}
        self._groups: Sequence[WorkerGroup] = ()
        self._explained: HybridRLError | None = None
        record = str((self.files.folder / FAULTS_FILE).absolute())
        self._faults, self._restarts = [replace(fault, record=record) for fault in faults], restarts
        self._address = address_of(cfg.cluster.ray) if on == "ray" else None
        self._machine, self._shape = Machine.here(), RunShape.of(cfg)
        self._placement = Placement.of_config(cfg)

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
        self._prepared, self._credit = prepare(self._here), self._new_credit()
        self.terminal.say("data", self._prepared.describe())
        for warning in (*self._prepared.warnings, *(warn(self.cfg) for warn in _WARNINGS)):
            if warning is not None:
                self.terminal.warn(warning)
        if progress:
            self._go_to(progress)

    def _go_to(self, progress: Mapping[str, Any]) -> None:
        """Bring data and credit assignment to where a checkpoint was."""
        self._prepared.train.load_state_dict(progress["prompts"])
        self._credit = self._new_credit()
        self._credit.load_state_dict(progress["credit"])
        self._open = progress.get("open", {})

    def _new_credit(self) -> CreditAssignment:
        moe, skips = self.cfg.actor.moe, self.cfg.batch.skip_zero_advantages
        skips = skips and not (moe.aux_loss or moe.z_loss)  # these have a gradient at every token
        return load_credit(self.cfg.algorithm, skips_zeros=skips)

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
        self._starts = self._starting()
        self._use(self._starts.all(self._faults))
        try:
            count = sum(len(group.there) for group in self._groups)
            start = counted(count, "worker starts", "workers start")
            with self.terminal.working(
                "ray", f"{start}, {self.cluster.described}", "workers ready"
            ) as advance:
                built = await self._built(advance)
            yield built
        except HybridRLError as error:
            await self._explain(error)
            raise
        finally:
            await self._workers.stop()
            self.cluster.prepare_end()
            for group in self._workers.groups:
                group.kill()
            if self._starts.mirror:
                self._starts.mirror.close()

    async def begin_again(self, error: HybridRLError) -> tuple[RayTrainer, Roles]:
        """Start trainer ranks and reward workers again, from the last checkpoint; engines and environments
        stay."""
        await self._explain(error)
        await self._starts.end_training(self._workers)
        self.observe.note()
        if self._restarts is None or not self._restarts.keeps_engines(error):
            raise error
        try:
            return await self._begun_again(self._restarts, error)
        except Exception as failed:
            text = f"that failed, and the whole run starts again: {type(failed).__name__}: {failed}"
            self.terminal.warn(text)
            raise error from failed

    async def _begun_again(self, restarts: Restarts, error: HybridRLError) -> tuple[RayTrainer, Roles]:
        rollout = await self._workers.rollout.begin_again()
        self.checkpoint = await asyncio.to_thread(self.newest_checkpoint, required=True)
        assert self.checkpoint is not None, "it is required"
        self._go_to(self.checkpoint.progress)
        self._session.__exit__(type(error), error, error.__traceback__)
        self.observe = self._session.enter_context(self.observer(self.start_step))
        self._starts = replace(self._starts, warn=self.observe.warn)
        self._use(self._starts.again(self._workers, rollout))
        self._faults = restarts.left_of(self._faults)
        count = sum(len(group.there) for group in self._workers.training)
        start = counted(count, "worker starts", "workers start")
        stay = counted(len(rollout.workers.there), "engine stays", "engines stay")
        with self.terminal.working("ray", f"{start}, {stay}", "workers ready") as advance:
            return await self._built(advance, again=True)

    def _use(self, workers: Workers) -> None:
        self._workers, self._groups = workers, workers.groups

    def _starting(self) -> Starts:
        cfg, shape = self.cfg, self._shape
        engine = layout_in(kind_of(cfg.rollout.engine), self.model, shape.engine, cfg.rollout.precision)
        layouts = trainer_layout(cfg, self.model, shape.parallel), engine
        return Starts(
            cfg=cfg,
            shape=shape,
            placement=self._placement,
            cluster=self.cluster,
            devices=Devices.of(cfg, self._placement, self.cluster.gpus, *layouts, parts=shape.engine_parts),
            environment_nodes=self._environment_nodes,
            files=self.files,
            mirror=mirror_of(cfg.run, self.files, lambda about, text: self.observe.warn(about, text)),
            say=self.terminal.warn,
            warn=self.observe.warn,
        )

    async def _built(self, advance: Advance, *, again: bool = False) -> tuple[RayTrainer, Roles]:
        """Build what the workers hold, and connect trainer and engines."""
        cfg, workers, starts = self.cfg, self._workers, self._starts
        for note in await starts.build(workers, self.checkpoint, self._faults, advance, again=again):
            self.observe.warn("resume", note)
        sync = await connect(
            cfg.rollout.weight_path,
            workers.trainer,
            workers.rollout,
            layout_in(kind_of(cfg.rollout.engine), self.model, self._shape.engine, cfg.rollout.precision),
            cfg.cluster,
            self.observe.warn,
            starts.devices.topology,
            cfg.rollout.swap,
            workers.receivers,
        )
        workers.rollout.engines.give_weights = sync.join
        return workers.trainer, self._roles(workers, sync)

    async def _explain(self, error: HybridRLError) -> None:
        """Write down what every process was doing when the run failed."""
        if isinstance(error, UserError) or error is self._explained:
            return
        self._explained = error
        now, groups = self.observe, self._groups
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
                share_prompts=cfg.actor.share_prompts,
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
