"""Starts the engines of models that are never trained: one that judges, and one that plays."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.judge import ServedModelConfig
from hybridrl.config.schema import Config
from hybridrl.launch.shape import Placement, RunFiles
from hybridrl.launch.start_trainers import Start
from hybridrl.rollout.base import EngineKind, EngineSetup, kind_of
from hybridrl.workers.judge import RayJudge
from hybridrl.workers.served import ServedWorker


@dataclass(frozen=True, slots=True)
class ServedEngines:
    """The engines of a run's judge and of its frozen player, before they start."""

    cfg: Config
    placement: Placement

    def judge(self, start: Start, files: RunFiles) -> RayJudge | None:
        """Start the processes, not yet the engines; None: the run has no judge."""
        judge = self.cfg.judge
        if judge is None:
            return None
        longest = judge.max_prompt_tokens, judge.max_response_tokens
        return RayJudge(self._started("judge", judge, longest, self.placement.judge, start, files), judge)

    def frozen(self, start: Start, files: RunFiles) -> WorkerGroup | None:
        """Start the processes, not yet the engines; None: the run has no frozen player."""
        frozen, rollout = self.cfg.frozen, self.cfg.rollout
        if frozen is None:
            return None
        longest = rollout.longest_history_tokens, rollout.max_response_tokens
        return self._started("frozen", frozen, longest, self.placement.frozen, start, files)

    def _started(
        self,
        name: str,
        model: ServedModelConfig,
        longest: tuple[int, int],
        nodes: Sequence[int],
        start: Start,
        files: RunFiles,
    ) -> WorkerGroup:
        """
        Args:
            longest: most tokens of a prompt and of an answer.
        """
        files.logs.mkdir(parents=True, exist_ok=True)
        kind = kind_of(model.engine or self.cfg.rollout.engine)
        setups = self._setups(name, model, kind, longest, files)
        given = [(kind, setup, model.max_restarts) for setup in setups]
        return start(name, ServedWorker, given, nodes)

    def _setups(
        self, name: str, model: ServedModelConfig, kind: EngineKind, longest: tuple[int, int], files: RunFiles
    ) -> Iterator[EngineSetup]:
        cfg = self.cfg
        for engine in range(model.num_engines):
            yield EngineSetup(
                model_folder=model.path,
                log_path=str(files.logs / f"{name}{engine}.log"),
                parallel=kind.parallel(tp=model.tp),
                seed=cfg.run.seed,
                deterministic=cfg.run.deterministic,
                max_prompt_tokens=longest[0],
                max_response_tokens=longest[1],
                kv_cache_tokens=model.kv_cache_tokens,
                memory_fraction=model.memory_fraction,
                max_running_requests=model.max_running_requests,
                python=model.python and os.path.abspath(model.python),  # not what a link leads to
                start_timeout_s=cfg.cluster.start_timeout_s,
            )
