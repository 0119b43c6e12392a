"""What a config comes to: how many GPUs, ranks, engines and optimizer steps."""

from dataclasses import dataclass

from hybridrl.config.cluster import ClusterConfig
from hybridrl.config.rollout import EngineParallel
from hybridrl.config.schema import Config
from hybridrl.config.training import TrainParallel


@dataclass(frozen=True, slots=True)
class RunShape:
    """Counts that follow from a config; the batch identity that is printed before a run."""

    parallel: TrainParallel
    """Of the trainer, with its dp."""

    num_engines: int
    engine: EngineParallel
    trajectories_per_step: int
    optimizer_steps_per_step: int

    critic: TrainParallel | None = None
    """With its dp; None: on the actor's ranks, if there is one."""

    reference: TrainParallel | None = None
    """Of reference and teacher, as `critic`."""

    reward_model: TrainParallel | None = None
    """As `critic`."""

    engine_parts: int = 1
    """Nodes that each engine is on."""

    @property
    def trainer_ranks(self) -> int:
        return self.parallel.num_ranks

    @classmethod
    def of(cls, cfg: Config) -> "RunShape":
        """Actor, critic, reference, reward model and engines each fill all GPUs; without any there is one
        replica of each. The config may say otherwise."""
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
            trajectories_per_step=batch.prompts_per_step * cfg.algorithm.samples_per_prompt,
            optimizer_steps_per_step=cfg.batch.optimizer_steps,
            engine_parts=-(-engine.tp // (cfg.cluster.gpus_per_node or engine.tp)),
        )


def with_dp(parallel: TrainParallel, cluster: ClusterConfig) -> TrainParallel:
    """With the data-parallel size that the devices of the config leave."""
    return parallel.model_copy(
        update={"dp": parallel.dp or max(1, num_gpus(cluster) // parallel.model_ranks)}
    )


def num_gpus(cluster: ClusterConfig) -> int:
    """Of all nodes."""
    return cluster.nodes * (cluster.gpus_per_node or 0)
