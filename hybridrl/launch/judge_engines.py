"""Starts the engines of the model that judges."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from hybridrl.config.judge import JudgeConfig
from hybridrl.config.schema import Config
from hybridrl.launch.shape import Placement, RunFiles
from hybridrl.launch.start_trainers import Start
from hybridrl.rollout.base import EngineSetup, kind_of
from hybridrl.workers.judge import RayJudge
from hybridrl.workers.rollout import RolloutWorker


@dataclass(frozen=True, slots=True)
class JudgeEngines:
    """The engines of a run's judge, before they start."""

    cfg: Config
    placement: Placement

    def start(self, start: Start, files: RunFiles) -> RayJudge | None:
        """Start the processes, not yet the engines; None: the run has no judge."""
        judge = self.cfg.judge
        if judge is None:
            return None
        files.logs.mkdir(parents=True, exist_ok=True)
        kind = kind_of(judge.engine or self.cfg.rollout.engine)
        given = [(kind, setup) for setup in self._setups(judge, files)]
        return RayJudge(start("judge", RolloutWorker, given, self.placement.judge), judge)

    def _setups(self, judge: JudgeConfig, files: RunFiles) -> Iterator[EngineSetup]:
        cfg, kind = self.cfg, kind_of(judge.engine or self.cfg.rollout.engine)
        for engine in range(judge.num_engines):
            yield EngineSetup(
                model_folder=judge.path,
                log_path=str(files.logs / f"judge{engine}.log"),
                parallel=kind.parallel(tp=judge.tp),
                seed=cfg.run.seed,
                deterministic=cfg.run.deterministic,
                max_prompt_tokens=judge.max_prompt_tokens,
                max_response_tokens=judge.max_response_tokens,
                kv_cache_tokens=judge.kv_cache_tokens,
                memory_fraction=judge.memory_fraction,
                max_running_requests=judge.max_running_requests,
                python=judge.python and os.path.abspath(judge.python),  # not what a link leads to
                start_timeout_s=cfg.cluster.start_timeout_s,
            )
