"""What a config comes to on a machine: how many ranks, engines, optimizer steps; and the folders of a run."""

from dataclasses import dataclass
from pathlib import Path

from hybridrl.config.check import optimizer_steps
from hybridrl.config.schema import Config


@dataclass(frozen=True, slots=True)
class RunShape:
    """Counts that follow from a config; the batch identity that is printed before a run."""

    tp: int
    pp: int
    dp: int
    num_engines: int
    engine_tp: int
    trajectories_per_step: int
    optimizer_steps_per_step: int

    @property
    def trainer_ranks(self) -> int:
        return self.tp * self.pp * self.dp

    @classmethod
    def of(cls, cfg: Config) -> "RunShape":
        """Without GPUs there is one replica and one engine unless the config says otherwise."""
        parallel, batch = cfg.actor.parallel, cfg.batch
        return cls(
            tp=parallel.tp,
            pp=parallel.pp,
            dp=parallel.dp or 1,
            num_engines=cfg.rollout.num_engines or 1,
            engine_tp=cfg.rollout.parallel.tp,
            trajectories_per_step=batch.prompts_per_step * cfg.algorithm.samples_per_prompt,
            optimizer_steps_per_step=optimizer_steps(cfg),
        )


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Paths inside a run folder."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def export(self) -> Path:
        return self.folder / "export"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"
