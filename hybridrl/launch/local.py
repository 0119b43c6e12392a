"""A run on this machine: from a checked config to processes, through the loop, to the exported model.

prepare     prompts and reward: no worker is started before these are in order
_crew       engines, trainer ranks and reward workers start together; engines export their parameters,
            trainer ranks map them
loop.run    until the last step
finish      export, curve, summary
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hybridrl.cluster.env import worker_environment
from hybridrl.cluster.group import WorkerGroup
from hybridrl.cluster.ray_local import local_ray
from hybridrl.config.load import LoadedConfig
from hybridrl.config.schema import Config
from hybridrl.controller import loop
from hybridrl.controller.advantage import CreditAssignment, load_credit
from hybridrl.controller.evaluate import Evaluator
from hybridrl.controller.roles import Roles
from hybridrl.data.packing import plan_minibatches
from hybridrl.errors import CheckpointError, ResourceError
from hybridrl.hosts.machine import GIB, Machine
from hybridrl.launch.plan import RunFiles, RunShape
from hybridrl.launch.prepare import Prepared, prepare
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models import spec
from hybridrl.observe.observer import RunObserver
from hybridrl.observe.terminal import Terminal
from hybridrl.rollout.sglang.engine import EngineSetup
from hybridrl.trainer.setup import TrainerSetup
from hybridrl.workers.reward import RayReward, RewardWorker
from hybridrl.workers.rollout import RayRollout, RolloutWorker
from hybridrl.workers.sync import RaySync
from hybridrl.workers.trainer import RayTrainer, TrainerWorker, newest_checkpoint

FOLLOWING = (
    ("hybridrl launch configs/smollm2_reasoning_gym.yaml", "a real 135 M model"),
    ("hybridrl config explain algorithm", "what else there is to choose"),
)
"""Commands that the end of a run proposes."""


def run(loaded: LoadedConfig, *, resume: bool) -> None:
    """Train to the last step of a config that passed its checks.

    The run folder exists and belongs to this process.

    Raises:
        CheckpointError: --resume, and there is no whole checkpoint.
        ResourceError: it would take GPUs.
        HybridRLError: what a part of the run raised; everything that was started is stopped.
    """
    cfg, terminal, machine = loaded.config, Terminal(), Machine.here()
    refuse_gpus(loaded, machine)
    files, shape = RunFiles(Path(cfg.run.folder) / cfg.run.name), RunShape.of(cfg)
    checkpoint = newest_checkpoint(files.checkpoints) if resume else None
    if resume and checkpoint is None:
        raise CheckpointError(
            f"{files.checkpoints} holds no whole checkpoint", fix="run.name=... starts another run"
        )
    start_step = checkpoint.step if checkpoint else 0
    prepared = prepare(loaded)
    terminal.say("data", prepared.describe())
    credit = load_credit(cfg.algorithm)
    if checkpoint:
        prepared.train.load_state_dict(checkpoint.progress["prompts"])
        credit.load_state_dict(checkpoint.progress["credit"])
    with (
        RunObserver(cfg, terminal, resume_step=start_step if resume else None, num_devices=1) as observe,
        local_ray(num_workers=shape.trainer_ranks + shape.num_engines + 1) as logs,
    ):
        observe.keep(files.folder / "resolved.yaml")
        session = Session(
            cfg, files, shape, logs=Path(logs), prepared=prepared, credit=credit, observe=observe
        )
        asyncio.run(session.play(checkpoint.folder if checkpoint else None, start_step))
        observe.finish(
            {"model": f"{files.export}/"} if cfg.run.export else {},
            following=FOLLOWING,
            facts={"machine": {"cores": machine.cores, "memory_gib": round(machine.memory_bytes / GIB, 1)}},
        )


def refuse_gpus(loaded: LoadedConfig, machine: Machine) -> None:
    """
    Raises:
        ResourceError: the run would take GPUs.
    """
    asked = loaded.config.cluster.gpus_per_node
    gpus = len(machine.gpus) if asked is None else asked
    if gpus:
        raise ResourceError(
            f"this run would take {gpus} GPUs, but weights cannot be swapped through CUDA IPC yet",
            where=loaded.where("cluster.gpus_per_node"),
            fix="cluster.gpus_per_node=0 runs it on the CPU",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """The workers of a run as the roles that the loop knows."""

    rollout: RayRollout
    trainer: RayTrainer
    reward: RayReward
    sync: RaySync


class Session:
    """One start of a run, until it ends or fails."""

    def __init__(
        self,
        cfg: Config,
        files: RunFiles,
        shape: RunShape,
        *,
        logs: Path,
        prepared: Prepared,
        credit: CreditAssignment,
        observe: RunObserver,
    ) -> None:
        self._cfg, self._files, self._shape, self._logs = cfg, files, shape, logs
        self._prepared, self._credit, self._observe = prepared, credit, observe

    async def play(self, checkpoint: Path | None, start_step: int) -> None:
        """Start the workers, train, export, stop the workers."""
        async with self._crew(checkpoint, start_step) as crew:
            await loop.run(self._cfg, self._roles(crew))
            if self._cfg.run.export:
                await crew.trainer.export(self._files.export)

    def _roles(self, crew: Crew) -> Roles:
        cfg, heldout = self._cfg, self._prepared.heldout
        return Roles(
            prompts=self._prepared.train,
            engine=crew.rollout,
            reward=crew.reward,
            credit=self._credit,
            plan_minibatches=lambda batch: plan_minibatches(
                batch,
                minibatch_prompts=cfg.batch.minibatch_prompts or cfg.batch.prompts_per_step,
                epochs=cfg.batch.epochs,
                num_ranks=self._shape.dp,
                microbatch_tokens=cfg.actor.microbatch_tokens,
                seed=cfg.run.seed,
            ),
            trainer=crew.trainer,
            sync=crew.sync,
            evaluator=Evaluator(cfg, heldout, crew.rollout, crew.reward) if heldout else None,
            observe=self._observe,
        )

    @contextlib.asynccontextmanager
    async def _crew(self, checkpoint: Path | None, start_step: int) -> AsyncIterator[Crew]:
        """All workers, up and connected; stopped in the end, whatever happened."""
        cfg = self._cfg
        rollout = RayRollout(self._group("engine", RolloutWorker, self._engine_setups()), cfg.cluster)
        trainer = RayTrainer(
            self._group("trainer", TrainerWorker, self._trainer_setups()),
            cfg.cluster,
            self._files.checkpoints,
            cfg.run.keep_checkpoints,
        )
        reward = RayReward(self._group("reward", RewardWorker, [(cfg.reward, cfg.model.path)]), cfg.cluster)
        sync = RaySync(
            trainer, rollout, SGLangLayout(spec.read(cfg.model.path), tp=self._shape.engine_tp), cfg.cluster
        )
        groups = (rollout.workers, trainer.workers, reward.workers)
        try:
            with self._observe.terminal.working(
                "ray", f"{sum(map(len, groups))} workers start, loopback only"
            ):
                await asyncio.gather(*(g.learn_pids(timeout_s=cfg.cluster.start_timeout_s) for g in groups))
                await asyncio.gather(rollout.start(), trainer.build(checkpoint, start_step), reward.start())
                await sync.connect()
            yield Crew(rollout=rollout, trainer=trainer, reward=reward, sync=sync)
        finally:
            await asyncio.gather(rollout.stop(), reward.stop(), return_exceptions=True)
            for group in groups:
                group.kill()

    def _group(self, name: str, worker: Any, arguments: list[tuple]) -> WorkerGroup:
        environment = {
            "env_vars": worker_environment({"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"})
        }
        actors = [worker.options(num_cpus=1, runtime_env=environment).remote(*a) for a in arguments]
        return WorkerGroup(name, actors, self._logs)

    def _engine_setups(self) -> list[tuple[EngineSetup]]:
        rollout = self._cfg.rollout
        self._files.logs.mkdir(parents=True, exist_ok=True)
        return [
            (
                EngineSetup(
                    model_folder=self._cfg.model.path,
                    log_path=str(self._files.logs / f"engine{rank}.log"),
                    tp=self._shape.engine_tp,
                    seed=self._cfg.run.seed,
                    max_prompt_tokens=rollout.max_prompt_tokens,
                    max_response_tokens=rollout.max_response_tokens,
                    kv_cache_tokens=rollout.kv_cache_tokens,
                    memory_fraction=rollout.memory_fraction,
                    max_running_requests=rollout.max_running_requests,
                    version=None,
                    start_timeout_s=self._cfg.cluster.start_timeout_s,
                ),
            )
            for rank in range(self._shape.num_engines)
        ]

    def _trainer_setups(self) -> list[tuple[TrainerSetup]]:
        cfg, shape = self._cfg, self._shape
        first = TrainerSetup(
            rank=0,
            rendezvous=f"file://{self._logs.resolve() / 'trainer-rendezvous'}",
            tp=shape.tp,
            pp=shape.pp,
            dp=shape.dp,
            model=spec.read(cfg.model.path),
            model_folder=Path(cfg.model.path),
            actor=cfg.actor,
            algorithm=cfg.algorithm,
            critic=cfg.critic,
            temperature=cfg.rollout.temperature,
            max_response_tokens=cfg.rollout.max_response_tokens,
            seed=cfg.run.seed,
            num_optimizer_steps=cfg.run.steps * shape.optimizer_steps_per_step,
            timeout_s=cfg.cluster.step_timeout_s,
        )
        return [(replace(first, rank=rank),) for rank in range(shape.trainer_ranks)]
