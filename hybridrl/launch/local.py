"""A run on this machine: from a checked config to processes, through the loop, to the exported model.

prepare     tokenizer, prompts, estimator: no process is started before these are in order
Crew.up     engines, trainer ranks and reward workers start together; engines export their parameters,
trainers map them loop.run    until the last step finish      export, summary, curve
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.cluster.env import worker_environment
from hybridrl.cluster.group import WorkerGroup
from hybridrl.cluster.ray_local import local_ray
from hybridrl.config.load import LoadedConfig
from hybridrl.config.schema import Config
from hybridrl.controller import loop
from hybridrl.controller.evaluate import Evaluator
from hybridrl.controller.roles import PromptSource
from hybridrl.data.packing import plan_minibatches
from hybridrl.data.source import load_source
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.errors import CheckpointError
from hybridrl.hosts.machine import GIB, Machine
from hybridrl.launch.plan import RunFiles, RunShape
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models import spec
from hybridrl.observe.observer import RunObserver
from hybridrl.observe.terminal import Terminal
from hybridrl.rollout.sglang.engine import EngineSetup
from hybridrl.trainer.setup import TrainerSetup
from hybridrl.types import Prompt
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
        HybridRLError: what a part of the run raised; everything that was started is stopped.
    """
    cfg, terminal = loaded.config, Terminal()
    files, shape = RunFiles(Path(cfg.run.folder) / cfg.run.name), RunShape.of(cfg)
    checkpoint = newest_checkpoint(files.checkpoints) if resume else None
    if resume and checkpoint is None:
        raise CheckpointError(
            f"{files.checkpoints} holds no whole checkpoint", fix="run.name=... starts another run"
        )
    start_step = checkpoint.step if checkpoint else 0
    with terminal.working("data", "reading and tokenising prompts"):
        prompts, heldout = load_prompts(loaded)
    if checkpoint:
        prompts.load_state_dict(checkpoint.position)
    with (
        RunObserver(cfg, terminal, resume_step=start_step if resume else None, num_devices=1) as observe,
        local_ray(num_workers=shape.trainer_ranks + shape.num_engines + 1) as logs,
    ):
        observe.keep(files.folder / "resolved.yaml")
        session = Session(
            cfg, files, shape, logs=Path(logs), prompts=prompts, heldout=heldout, observe=observe
        )
        asyncio.run(session.play(checkpoint.folder if checkpoint else None, start_step))
        machine = Machine.here()
        observe.finish(
            {"model": f"{files.export}/"} if cfg.run.export else {},
            following=FOLLOWING,
            facts={"machine": {"cores": machine.cores, "memory_gib": round(machine.memory_bytes / GIB, 1)}},
        )


def load_prompts(loaded: LoadedConfig) -> tuple[PromptSource, list[Prompt]]:
    """The stream to learn from, and all held-out prompts."""
    cfg = loaded.config
    tokenizer = load_tokenizer(cfg.model.path)
    train = load_source(
        cfg.data.train,
        cfg.data,
        tokenizer,
        split="train",
        seed=cfg.run.seed,
        max_prompt_tokens=cfg.rollout.max_prompt_tokens,
        where=loaded.where("data.train"),
    )
    if cfg.data.heldout is None:
        return train, []
    heldout = load_source(
        cfg.data.heldout,
        cfg.data,
        tokenizer,
        split="heldout",
        seed=cfg.run.seed,
        max_prompt_tokens=cfg.rollout.max_prompt_tokens,
        where=loaded.where("data.heldout"),
    )
    return train, heldout.all()


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
        prompts: PromptSource,
        heldout: list[Prompt],
        observe: RunObserver,
    ) -> None:
        self._cfg, self._files, self._shape, self._logs = cfg, files, shape, logs
        self._prompts, self._heldout, self._observe = prompts, heldout, observe

    async def play(self, checkpoint: Path | None, start_step: int) -> None:
        """Start the workers, train, export, stop the workers."""
        async with self._crew(checkpoint, start_step) as crew:
            await loop.run(self._cfg, self._roles(crew))
            if self._cfg.run.export:
                await crew.trainer.export(self._files.export)

    def _roles(self, crew: Crew) -> loop.Roles:
        cfg = self._cfg
        return loop.Roles(
            prompts=self._prompts,
            engine=crew.rollout,
            reward=crew.reward,
            estimator=load_estimator(cfg.algorithm),
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
            evaluator=Evaluator(cfg, self._heldout, crew.rollout, crew.reward) if self._heldout else None,
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

    def _group(self, name: str, worker: type, arguments: list[tuple]) -> WorkerGroup:
        environment = {"env_vars": worker_environment({})}
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
            temperature=cfg.rollout.temperature,
            max_response_tokens=cfg.rollout.max_response_tokens,
            seed=cfg.run.seed,
            num_optimizer_steps=cfg.run.steps * shape.optimizer_steps_per_step,
            timeout_s=cfg.cluster.step_timeout_s,
        )
        return [(replace(first, rank=rank),) for rank in range(shape.trainer_ranks)]
