"""The numbers of GPUs, ranks, engines and optimizer steps that follow from a config."""

from dataclasses import dataclass

from hybridrl.config.cluster import ClusterConfig
from hybridrl.config.rollout import EngineParallel
from hybridrl.config.schema import Config
from hybridrl.config.sft_rm import SupervisedConfig
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

    separate: bool = False
    """Whether engines have dedicated devices."""

    @property
    def trainer_ranks(self) -> int:
        return self.parallel.num_ranks

    @classmethod
    def of(cls, cfg: Config) -> "RunShape":
        """Unless the config says otherwise, actor, critic, reference, reward model and engines each fill all
        GPUs; without GPUs there is one replica of each. Engines with dedicated GPUs leave the trainer the
        others."""
        engine, batch = cfg.rollout.parallel, cfg.batch
        critic, reference = cfg.critic.parallel, cfg.reference.parallel
        reward_model = cfg.reward_model.parallel if cfg.reward_model else None
        gpus = trainer_gpus(cfg)
        return cls(
            parallel=with_dp(cfg.actor.parallel, gpus),
            critic=critic and with_dp(critic, gpus),
            reference=reference and with_dp(reference, gpus),
            reward_model=reward_model and with_dp(reward_model, gpus),
            num_engines=_num_engines(cfg),
            engine=engine,
            judge_engines=cfg.judge.num_engines if cfg.judge else 0,
            frozen_engines=cfg.frozen.num_engines if cfg.frozen else 0,
            trajectories_per_step=batch.prompts_per_step * cfg.algorithm.samples_per_prompt,
            optimizer_steps_per_step=cfg.batch.optimizer_steps,
            engine_parts=-(-engine.tp // (cfg.cluster.gpus_per_node or engine.tp)),
            separate=is_separate(cfg),
        )


def with_dp(parallel: TrainParallel, gpus: int) -> TrainParallel:
    """The sizes with dp filled in: if it is not set, it is what these GPUs leave."""
    return parallel.model_copy(update={"dp": parallel.dp or max(1, gpus // parallel.model_ranks)})


def num_gpus(cluster: ClusterConfig) -> int:
    """GPUs of all nodes together."""
    return cluster.nodes * (cluster.gpus_per_node or 0)


def is_separate(cfg: Config | SupervisedConfig) -> bool:
    """Whether engines have dedicated devices."""
    return isinstance(cfg, Config) and cfg.cluster.placement == "separate"


def idle_warning(cfg: Config) -> str | None:
    """Why dedicated devices are idle; None if trainer and engines can work at the same time."""
    if not is_separate(cfg) or cfg.batch.max_lag:
        return None
    return (
        "cluster.placement = separate with batch.max_lag = 0: engines wait while the trainer works, and the "
        "trainer waits while they answer; batch.max_lag=1 lets both work at the same time"
    )


def engine_gpus(cfg: Config | SupervisedConfig) -> int:
    """GPUs that engines have for themselves: the last ones of the cluster."""
    if not isinstance(cfg, Config) or not is_separate(cfg) or not num_gpus(cfg.cluster):
        return 0
    return _num_engines(cfg) * cfg.rollout.parallel.tp


def trainer_gpus(cfg: Config | SupervisedConfig) -> int:
    """GPUs that trainer ranks can use."""
    return max(0, num_gpus(cfg.cluster) - engine_gpus(cfg))


def _num_engines(cfg: Config) -> int:
    """Number of engines. Those with dedicated GPUs are counted by the config."""
    fill = 1 if is_separate(cfg) else num_gpus(cfg.cluster) // cfg.rollout.parallel.tp
    return cfg.rollout.num_engines or max(1, fill)


def engines_sleep(cfg: Config) -> bool:
    """Whether engines free their memory while the trainer works: if they share it, and nothing runs in them
    meanwhile, or requests can be paused and the trainer is on the same GPUs."""
    if is_separate(cfg):
        return False
    return not cfg.batch.max_lag or (num_gpus(cfg.cluster) > 0 and cfg.rollout.swap != "drain")
