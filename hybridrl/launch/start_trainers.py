"""Starts the trainer ranks of a run: the actor's, and dedicated ones of critic, reference and reward
model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from hybridrl.cluster.group import WorkerGroup
from hybridrl.cluster.network import Rendezvous
from hybridrl.config.run_shape import RunShape
from hybridrl.config.schema import Config
from hybridrl.config.training import TrainParallel
from hybridrl.launch.column_groups import dedicated_columns
from hybridrl.launch.reward_model_setup import scoring
from hybridrl.launch.shape import Placement, RunFiles, trainer_host
from hybridrl.models import spec
from hybridrl.models.cost import attention_length
from hybridrl.trainer.checkpoints import Keep
from hybridrl.trainer.roles.critic import CriticRanks
from hybridrl.trainer.roles.frozen import FrozenRanks
from hybridrl.trainer.roles.reward_model import RewardModelRanks
from hybridrl.trainer.setup import PolicySetup, RankSetup
from hybridrl.trainer.store import Mirror
from hybridrl.workers.columns import ColumnGroup, RayCritic, RoleWorker
from hybridrl.workers.reward_model_ranks import RayRewardModel
from hybridrl.workers.trainer import Exports, RayTrainer, TrainerWorker

Setup = TypeVar("Setup", bound=RankSetup)
Start = Callable[[str, Any, list[tuple], Sequence[int]], WorkerGroup]
"""Starts workers: their name, the actor class, the arguments of each, the node of each."""


@dataclass(frozen=True, slots=True)
class Trainers:
    """The trainer ranks of a run, before they start."""

    cfg: Config
    shape: RunShape
    placement: Placement
    rendezvous: Rendezvous
    """Gives every group of ranks the address of its rendezvous."""

    def start(
        self,
        start: Start,
        files: RunFiles,
        warn: Callable[[str, str], None],
        mirror: Mirror | None = None,
    ) -> RayTrainer:
        """Start the actor's ranks, and the dedicated ranks of critic and reference.

        Args:
            warn: called with a kind and a text if a checkpoint cannot be written and the run goes on.
            mirror: copies the checkpoints elsewhere.
        """
        cfg, dedicated = self.cfg, dedicated_columns(self.cfg)
        ranks = self._with_reward_model(self.actor())
        return RayTrainer(
            start("trainer", TrainerWorker, ranks, self.placement.trainer),
            cfg.cluster,
            files.checkpoints,
            Keep(cfg.run.keep_checkpoints, cfg.run.keep_every),
            exports=Exports(files.exports, cfg.run.export_every) if cfg.run.export_every else None,
            warn=warn if cfg.run.on_save_error == "go_on" else None,
            critic=self._critic(start),
            frozen=self._frozen(start, dedicated.get("reference", ())),
            mirror=mirror,
        )

    def actor(self) -> list[PolicySetup]:
        """Arguments of the actor's ranks."""
        dedicated = dedicated_columns(self.cfg)
        remote = frozenset(column for columns in dedicated.values() for column in columns)
        return self._policies("trainers", self.shape.parallel, remote_columns=remote)

    def reward_model(self, start: Start, trainer: RayTrainer) -> RayRewardModel | None:
        """Start the dedicated ranks of the reward model, if it has some; otherwise the ranks of `trainer`
        hold it. None: the run has no reward model."""
        own, parallel = self.cfg.reward_model, self.shape.reward_model
        if own is None:
            return None
        sharding, limit = parallel or self.shape.parallel, own.microbatch_tokens
        partitioning = _partitioning(sharding, limit or self.cfg.actor.microbatch_tokens, own.path)
        if parallel is None:
            return RayRewardModel(trainer.workers, self.cfg.cluster, shared=True, **partitioning)
        setups = [
            (RewardModelRanks, scoring(setup, own))
            for setup in self._ranks(RankSetup, "reward models", parallel)
        ]
        workers = start("reward model", RoleWorker, setups, self.placement.reward_model)
        return RayRewardModel(workers, self.cfg.cluster, shared=False, **partitioning)

    def _with_reward_model(self, setups: Sequence[PolicySetup]) -> list[tuple]:
        """Arguments of the actor's ranks, with the setup of a reward model that shares them."""
        own = self.cfg.reward_model
        if own is None or own.parallel is not None:
            return [(setup,) for setup in setups]
        return [(setup, scoring(setup, own)) for setup in setups]

    def _critic(self, start: Start) -> RayCritic | None:
        parallel, limit = self.shape.critic, self.cfg.critic.microbatch_tokens
        if parallel is None:
            return None
        setups = [(CriticRanks, setup) for setup in self._policies("critics", parallel)]
        workers = start("critic", RoleWorker, setups, self.placement.critic)
        return RayCritic(workers, ("value",), self.cfg.cluster, **self._partitioned(parallel, limit))

    def _frozen(self, start: Start, columns: Sequence[str]) -> ColumnGroup | None:
        parallel, limit = self.shape.reference, self.cfg.reference.microbatch_tokens
        if parallel is None:
            return None
        setups = [(FrozenRanks, setup, *columns) for setup in self._policies("references", parallel)]
        workers = start("reference", RoleWorker, setups, self.placement.reference)
        return ColumnGroup(workers, columns, self.cfg.cluster, **self._partitioned(parallel, limit))

    def _partitioned(self, parallel: TrainParallel, limit: int | None) -> dict[str, Any]:
        return _partitioning(parallel, limit or self.cfg.actor.microbatch_tokens, self.cfg.model.path)

    def _policies(self, name: str, parallel: TrainParallel, **more: Any) -> list[PolicySetup]:
        cfg = self.cfg
        return self._ranks(
            PolicySetup,
            name,
            parallel,
            algorithm=cfg.algorithm,
            critic=cfg.critic,
            temperature=cfg.rollout.temperature,
            max_response_tokens=cfg.rollout.max_response_tokens,
            num_optimizer_steps=cfg.run.steps * self.shape.optimizer_steps_per_step,
            async_save=cfg.run.async_save,
            goes_on_unsaved=cfg.run.on_save_error == "go_on",
            **more,
        )

    def _ranks(self, kind: type[Setup], name: str, parallel: TrainParallel, **more: Any) -> list[Setup]:
        cfg = self.cfg
        first = kind(
            rank=0,
            rendezvous=self.rendezvous(name),
            parallel=parallel,
            model=spec.read(cfg.model.path),
            model_folder=Path(cfg.model.path),
            actor=cfg.actor,
            seed=cfg.run.seed,
            timeout_s=cfg.cluster.deadlines.collective_s or cfg.cluster.step_timeout_s,
            device=0 if trainer_host(cfg) == "cuda" else None,  # a worker sees its own GPU only
            pictures=cfg.data.images is not None,
            deterministic=cfg.run.deterministic,
            **more,
        )
        return [replace(first, rank=rank) for rank in range(parallel.num_ranks)]


def _partitioning(parallel: TrainParallel, limit: int, path: str) -> dict[str, Any]:
    length = attention_length(spec.read(path))
    return {"dp": parallel.dp, "microbatch_tokens": limit, "attention_length": length}
