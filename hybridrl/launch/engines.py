"""Starts the engines of a run, each on one node or in parts over several."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hybridrl.cluster.group import WorkerGroup
from hybridrl.cluster.late_nodes import NONE, LateNode, LateNodes
from hybridrl.config.run_shape import RunShape
from hybridrl.config.schema import Config
from hybridrl.faults import Fault
from hybridrl.launch.pictures import picture_format
from hybridrl.launch.shape import Placement, RunFiles
from hybridrl.launch.start_trainers import Start
from hybridrl.rollout.base import EngineSetup, kind_of
from hybridrl.types import PolicyVersion
from hybridrl.workers.engine_worker import RolloutWorker
from hybridrl.workers.replacing import Replacements
from hybridrl.workers.rollout import RayRollout
from hybridrl.workers.turns import TurnSetup


@dataclass(frozen=True, slots=True)
class Engines:
    """The engines of a run, before they start."""

    cfg: Config
    shape: RunShape
    placement: Placement
    rendezvous: Sequence[str]
    """host:port on each node, for the rendezvous of an engine in parts whose first part is on that node."""

    faults: Sequence[Fault] = ()
    say: Callable[[str], None] = lambda text: None
    """Tells the user that an engine was lost, serves again, or joins."""

    late: LateNodes = NONE
    """Nodes that may come after the run has begun."""

    version: PolicyVersion | None = None
    """Version of the weights in model.path. None: the engines serve only after their first swap."""

    def start(
        self, start: Start, files: RunFiles, hosts: Sequence[Any] = (), frozen: Sequence[Any] = ()
    ) -> RayRollout:
        """Start the processes, not yet the engines.

        Args:
            hosts: actors that play the environments; empty: each engine's worker starts its own.
            frozen: actors with the engines of the frozen player; empty: there is none.
        """
        files.logs.mkdir(parents=True, exist_ok=True)
        parts = self.shape.engine_parts
        placed = list(zip(self._setups(files), self.placement.engine, strict=True))
        kind, first = kind_of(self.cfg.rollout.engine), placed[::parts]
        most = self.cfg.rollout.max_running_requests if self.cfg.batch.max_lag else None
        swap, fullest = self.cfg.rollout.swap, max(Counter(node for _, node in first).values())
        turns = TurnSetup.of(self.cfg, engines_of_node=fullest)
        turns = turns and replace(turns, hosts=hosts, frozen=frozen)
        others = [one for place, one in enumerate(placed) if place % parts]
        pictures = picture_format(self.cfg)
        given = [
            (kind, setup, most, swap, turns and replace(turns, engine=engine), pictures)
            for engine, (setup, _) in enumerate(first)
        ]
        workers = start("engine", RolloutWorker, given, [node for _, node in first])
        return RayRollout(
            workers,
            self.cfg.cluster,
            start("engine part", RolloutWorker, [(kind, s) for s, _ in others], [node for _, node in others])
            if others
            else None,
            engines=self._replacements(
                workers, [node for _, node in first], 0 if others else self.cfg.rollout.max_restarts
            ),
            alive_timeout_s=self.cfg.rollout.alive_timeout_s,
        )

    def _replacements(self, workers: WorkerGroup, nodes: Sequence[int], most: int) -> Replacements:
        late = {e: LateNode(self.late, node) for e, node in enumerate(nodes) if node in self.late}
        return Replacements(
            workers,
            most=most,
            start_timeout_s=self.cfg.cluster.start_timeout_s,
            say=self.say,
            faults=[fault for fault in self.faults if fault.target.startswith("engine")],
            nodes=late,
        )

    def _setups(self, files: RunFiles) -> Iterator[EngineSetup]:
        """The setup of every part, engine by engine."""
        cfg, rollout, parts = self.cfg, self.cfg.rollout, self.shape.engine_parts
        for engine in range(self.shape.num_engines):
            node = self.placement.engine[engine * parts]
            for part in range(parts):
                name = f"engine{engine}-{part}" if part else f"engine{engine}"
                yield EngineSetup(
                    model_folder=cfg.model.path,
                    log_path=str(files.logs / f"{name}.log"),
                    parallel=self.shape.engine,
                    seed=cfg.run.seed,
                    deterministic=cfg.run.deterministic,
                    max_prompt_tokens=rollout.longest_history_tokens,
                    max_response_tokens=rollout.max_response_tokens,
                    kv_cache_tokens=rollout.kv_cache_tokens,
                    memory_fraction=rollout.memory_fraction,
                    max_running_requests=rollout.max_running_requests,
                    fp8_weights=rollout.precision == "fp8" and self.version is None,
                    fp8_cache=rollout.kv_cache_precision == "fp8",
                    version=self.version,
                    python=rollout.python and os.path.abspath(rollout.python),  # not what a link leads to
                    start_timeout_s=cfg.cluster.start_timeout_s,
                    returns_experts=cfg.actor.moe.router_replay == "rollout",
                    parts=parts,
                    part=part,
                    rendezvous=self.rendezvous[node] if parts > 1 else "",
                )
