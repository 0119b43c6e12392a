"""The numbers of GPUs, ranks, engines and optimizer steps that follow from a config."""

from dataclasses import dataclass

from hybridrl.config.cluster import ClusterConfig
from hybridrl.config.rollout import EngineParallel
from hybridrl.config.schema import Config
from hybridrl.config.training import TrainParallel


@dataclass(frozen=True, slots=True)
class RunShape:
    """Counts and parallel sizes that follow from a config, as they are printed before a run."""

    parallel: TrainParallel
    """Sizes of the trainer, with dp filled in."""

    num_engines: int
    engine: EngineParallel
    trajectories_per_step: int
    optimizer_steps_per_step: int

    critic: TrainParallel | None = None
    """Sizes on dedicated ranks, with dp filled in; None: it is on the actor's ranks, or there is no
    critic."""

    reference: TrainParallel | None = None
    """Sizes of reference and teacher, as for `critic`."""

    reward_model: TrainParallel | None = None
    """Sizes of the reward model, as for `critic`."""

    judge_engines: int = 0
    """Engines of the model that judges."""

    frozen_engines: int = 0
    """Engines of the frozen player."""

    engine_parts: int = 1
    """Number of nodes that each engine spans."""

    @property
    def trainer_ranks(self) -> int:
        return self.parallel.num_ranks

    @classmethod
    def of(cls, cfg: Config) -> "RunShape":
        """Unless the config says otherwise, actor, critic, reference, reward model and engines each fill all
        GPUs; without GPUs there is one replica of each."""
        engine, batch = cfg.rollout.parallel, cfg.batch
        critic, reference = cfg.critic.parallel, cfg.reference.parallel
        reward_model = cfg.reward_model.parallel if cfg.reward_model else None
        return cls(
            parallel=with_dp(cfg.actor.parallel, cfg.cluster),
            critic=critic and with_dp(critic, cfg.cluster),
            reference=reference and with_dp(reference, cfg.cluster),
            reward_model=reward_model and with_dp(reward_model, cfg.cluster),
            num_engines=cfg.rollout.num_engines or max(1, num_gpus(cfg.cluster) // engine.tp),
            engine=engine,
            judge_engines=cfg.judge.num_engines if cfg.judge else 0,
            frozen_engines=cfg.frozen.num_engines if cfg.frozen else 0,
            trajectories_per_step=batch.prompts_per_step * cfg.algorithm.samples_per_prompt,
            optimizer_steps_per_step=cfg.batch.optimizer_steps,
            engine_parts=-(-engine.tp // (cfg.cluster.gpus_per_node or engine.tp)),
        )


def with_dp(parallel: TrainParallel, cluster: ClusterConfig) -> TrainParallel:
    """The sizes with dp filled in: if it is not set, it is what the devices of the config leave."""
    return parallel.model_copy(
        update={"dp": parallel.dp or max(1, num_gpus(cluster) // parallel.model_ranks)}
    )


def num_gpus(cluster: ClusterConfig) -> int:
    """GPUs of all nodes together."""
    return cluster.nodes * (cluster.gpus_per_node or 0)


def engines_sleep(cfg: Config) -> bool:
    """Whether engines free their memory while the trainer works: if nothing runs in them meanwhile, or if
    requests can be paused and the trainer is on the same GPUs."""
    return not cfg.batch.max_lag or (num_gpus(cfg.cluster) > 0 and cfg.rollout.swap != "drain")
