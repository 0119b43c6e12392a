"""A run, driven from this machine: from a checked config to processes, through the loop, to the model.

_cluster    a Ray of this machine, or one that runs already
prepare     prompts and reward: no worker is started before these are in order
_crew       engines, trainer ranks and reward workers start together; engines export their parameters,
            trainer ranks map them
loop.run    until the last step
finish      export, curve, summary
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hybridrl.cluster.env import expected_nodes, ray_address
from hybridrl.cluster.group import WorkerGroup
from hybridrl.cluster.network import Meet, at, in_folder, networks
from hybridrl.cluster.nodes import ExpectedNodes
from hybridrl.cluster.placement import Placing, anywhere, gpu_names, reserved
from hybridrl.cluster.ray_attached import attached_ray
from hybridrl.cluster.ray_local import local_ray
from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.reward_model import no_rule
from hybridrl.config.schema import Config
from hybridrl.controller import loop
from hybridrl.controller.advantage import CreditAssignment, load_credit
from hybridrl.controller.evaluate import Evaluator
from hybridrl.controller.reward_model import JudgedReward
from hybridrl.controller.roles import Reward, Roles, WeightSync
from hybridrl.data.packing import plan_minibatches
from hybridrl.errors import ConfigError
from hybridrl.hosts.machine import GIB, Machine
from hybridrl.launch.devices import Devices, environment
from hybridrl.launch.engines import Engines
from hybridrl.launch.prepare import Prepared, prepare
from hybridrl.launch.resume import checkpoint_of
from hybridrl.launch.shape import Resume, RunFiles, RunShape, Seats, num_gpus, trainer_layout
from hybridrl.launch.stop import StopRequest
from hybridrl.launch.trainers import Trainers
from hybridrl.models import spec
from hybridrl.models.cost import attention_length
from hybridrl.observe.observer import RunObserver
from hybridrl.observe.terminal import Terminal
from hybridrl.rollout.base import kind_of
from hybridrl.workers.fallback import connect
from hybridrl.workers.reward import RayReward, RewardWorker
from hybridrl.workers.reward_model import RayRewardModel
from hybridrl.workers.rollout import RayRollout
from hybridrl.workers.trainer import RayTrainer

Place = Literal["local", "ray"]
"""A Ray that is started here, or one that runs already."""

FOLLOWING = (
    ("hybridrl launch configs/smollm2_reasoning_gym.yaml", "a real 135 M model"),
    ("hybridrl config explain algorithm", "what else there is to choose"),
)
"""Commands that the end of a run proposes."""


def run(loaded: LoadedConfig, *, on: Place, resume: Resume) -> str | None:
    """Train to the last step of a config that passed its checks, or until a signal asks to stop.

    The run folder exists and belongs to this process.

    Returns:
        The signal that the run stopped at, with a checkpoint or before its first step; None: it is done.

    Raises:
        CheckpointError: there is no undamaged checkpoint, and `resume` demands one, or it is of another
            model.
        ResourceError: the cluster lacks room.
        HybridRLError: what a part of the run raised; everything that was started is stopped.
        KeyboardInterrupt: Ctrl-C, or a second signal.
    """
    terminal = Terminal()
    with StopRequest(terminal.warn) as stop:
        try:
            return _train(loaded, terminal, stop, on=on, resume=resume)
        except KeyboardInterrupt:
            if stop.came_early:
                terminal.say("stopped", f"by {stop.signal} before a step began")
                return stop.signal
            raise


def _train(
    loaded: LoadedConfig, terminal: Terminal, stop: StopRequest, *, on: Place, resume: Resume
) -> str | None:
    cfg, machine = loaded.config, Machine.here()
    address = _address(cfg) if on == "ray" else None
    files, shape = RunFiles(Path(cfg.run.folder) / cfg.run.name), RunShape.of(cfg)
    checkpoint = checkpoint_of(files, spec.read(cfg.model.path), resume, terminal)
    start_step = checkpoint.step if checkpoint else 0
    prepared = prepare(loaded)
    terminal.say("data", prepared.describe())
    credit = load_credit(cfg.algorithm)
    if checkpoint:
        prepared.train.load_state_dict(checkpoint.progress["prompts"])
        credit.load_state_dict(checkpoint.progress["credit"])
    resume_step, seats = None if resume == "never" else start_step, Seats.of(shape, cfg.cluster.nodes)
    with (
        RunObserver(
            cfg, terminal, resume_step=resume_step, num_devices=num_gpus(cfg.cluster) or 1
        ) as observe,
        _cluster(cfg, seats, address, machine) as cluster,
    ):
        stop.listen()
        observe.keep(files.folder / "resolved.yaml")
        session = Session(
            cfg, files, shape, cluster=cluster, prepared=prepared, credit=credit, observe=observe, stop=stop
        )
        stopped_by = asyncio.run(session.play(checkpoint.folder if checkpoint else None, start_step))
        observe.finish(
            {"model": f"{files.export}/"} if cfg.run.export and not stopped_by else {},
            following=() if stopped_by else FOLLOWING,
            facts={
                "machine": {"cores": machine.cores, "memory_gib": round(machine.memory_bytes / GIB, 1)},
                "engine": dict(kind_of(cfg.rollout.engine).versions()),
            },
            stopped_by=stopped_by,
        )
    return stopped_by


def _address(cfg: Config) -> str:
    address = cfg.cluster.ray.address or ray_address()
    if address is None:
        raise ConfigError("no Ray to join", fix="set cluster.ray.address=host:port, or RAY_ADDRESS")
    return address


@dataclass(frozen=True, slots=True)
class Cluster:
    """The Ray of a run."""

    logs: Path
    place: Placing
    described: str
    meet: Meet
    interfaces: tuple[str, ...]
    """Network interface that the workers of each node talk over."""

    gpus: Sequence[Sequence[str]] = ()
    """Of each node, as CUDA names them."""

    engines_meet: Sequence[str] = ()
    """Of each node, where parts of an engine meet whose first part is there; one node: there are no parts."""


@contextlib.contextmanager
def _cluster(cfg: Config, seats: Seats, address: str | None, machine: Machine) -> Iterator[Cluster]:
    """A Ray of this machine, or the one at an address."""
    num_gpus = cfg.cluster.gpus_per_node or 0
    if address is None:
        gpus = [[str(gpu.index) for gpu in machine.gpus][:num_gpus]]
        with local_ray(num_workers=sum(seats.per_node)) as logs:
            yield Cluster(Path(logs), anywhere, "loopback only", in_folder(Path(logs)), ("lo",), gpus)
        return
    nodes = ExpectedNodes(cfg.cluster.nodes, num_gpus, expected_nodes())
    timeout_s = cfg.cluster.start_timeout_s
    with (
        attached_ray(address, nodes, timeout_s=timeout_s) as logs,
        reserved(seats.per_node, num_gpus, timeout_s=timeout_s) as place,
    ):
        described = f"on the Ray at {address}"
        gpus = gpu_names(place, cfg.cluster.nodes, num_gpus) if num_gpus else []
        if cfg.cluster.nodes == 1:
            yield Cluster(logs, place, described, in_folder(logs), ("lo",), gpus)
        else:
            found = networks(place, cfg.cluster.nodes, timeout_s=timeout_s)
            interfaces = tuple(network.interface for network in found)
            engines_meet = tuple(network.of_engine for network in found)
            yield Cluster(logs, place, described, at(found[0]), interfaces, gpus, engines_meet)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """The workers of a run as the roles that the loop knows."""

    rollout: RayRollout
    trainer: RayTrainer
    reward: Reward
    heldout_reward: Reward
    """Of held-out answers."""

    sync: WeightSync


class Session:
    """One start of a run, until it ends or fails."""

    def __init__(
        self,
        cfg: Config,
        files: RunFiles,
        shape: RunShape,
        *,
        cluster: Cluster,
        prepared: Prepared,
        credit: CreditAssignment,
        observe: RunObserver,
        stop: StopRequest,
    ) -> None:
        self._cfg, self._files, self._shape, self._cluster = cfg, files, shape, cluster
        self._prepared, self._credit, self._observe, self._stop = prepared, credit, observe, stop
        self._seats, model = Seats.of(shape, cfg.cluster.nodes), spec.read(cfg.model.path)
        self._engine_layout = kind_of(cfg.rollout.engine).layout(model, shape.engine)
        layouts = trainer_layout(cfg, model, shape.parallel), self._engine_layout
        self._devices = Devices.of(cfg, self._seats, cluster.gpus, *layouts, parts=shape.engine_parts)

    async def play(self, checkpoint: Path | None, start_step: int) -> str | None:
        """Start the workers, train, export, stop the workers.

        Returns:
            The signal that training stopped at before its last step.
        """
        async with self._crew(checkpoint, start_step) as crew:
            self._stop.begin()
            await loop.run(self._cfg, self._roles(crew))
            if crew.trainer.version < self._cfg.run.steps:
                return self._stop.signal
            if self._cfg.run.export:
                await crew.trainer.export(self._files.export)
        return None

    def _roles(self, crew: Crew) -> Roles:
        cfg, heldout = self._cfg, self._prepared.heldout
        length = attention_length(spec.read(cfg.model.path))
        return Roles(
            prompts=self._prepared.train,
            engine=crew.rollout,
            reward=crew.reward,
            credit=self._credit,
            plan_minibatches=lambda batch: plan_minibatches(
                batch,
                minibatch_prompts=cfg.batch.minibatch_prompts or cfg.batch.prompts_per_step,
                epochs=cfg.batch.epochs,
                num_ranks=self._shape.parallel.dp or 1,
                microbatch_tokens=cfg.actor.microbatch_tokens,
                seed=cfg.run.seed,
                attention_length=length,
            ),
            trainer=crew.trainer,
            sync=crew.sync,
            evaluator=Evaluator(cfg, heldout, crew.rollout, crew.heldout_reward) if heldout else None,
            observe=self._observe,
            stop_requested=self._stop.requested,
        )

    @contextlib.asynccontextmanager
    async def _crew(self, checkpoint: Path | None, start_step: int) -> AsyncIterator[Crew]:
        """All workers, up and connected; stopped in the end, whatever happened."""
        cfg = self._cfg
        seats, scoring = self._seats, [(cfg.reward, cfg.model.path)]
        engines = Engines(cfg, self._shape, seats, self._cluster.engines_meet)
        rollout = engines.start(self._group, self._files)
        trainers = Trainers(cfg, self._shape, seats, self._cluster.meet)
        trainer = trainers.start(self._group, self._files)
        rule = RayReward(self._group("reward", RewardWorker, scoring, seats.reward), cfg.cluster)
        reward_model = trainers.reward_model(self._group, trainer)
        own_workers = reward_model.own_workers if reward_model else []
        groups = (*rollout.groups, *trainer.groups, rule.workers, *own_workers)
        try:
            with self._observe.terminal.working(
                "ray", f"{sum(map(len, groups))} workers start, {self._cluster.described}"
            ):
                await asyncio.gather(*(g.learn_pids(timeout_s=cfg.cluster.start_timeout_s) for g in groups))
                beside = [rollout.start(), rule.start(), *([reward_model.build()] if reward_model else [])]
                if self._devices.visible:
                    # An engine's share is of what is free on its GPU. The rest is the trainer's, and this too
                    # until the engine answers.
                    await beside.pop(0)
                    await rollout.rest()
                notes, _ = await asyncio.gather(
                    trainer.build(checkpoint, start_step), asyncio.gather(*beside)
                )
                for note in notes:
                    self._observe.warn("resume", note)
                sync = await connect(
                    cfg.rollout.weight_path,
                    trainer,
                    rollout,
                    self._engine_layout,
                    cfg.cluster,
                    self._observe.warn,
                    self._devices.topology,
                )
            reward, heldout = self._rewards(rule, reward_model)
            yield Crew(rollout=rollout, trainer=trainer, reward=reward, heldout_reward=heldout, sync=sync)
        finally:
            await asyncio.gather(rollout.stop(), rule.stop(), return_exceptions=True)
            for group in groups:
                group.kill()

    def _rewards(self, rule: RayReward, model: RayRewardModel | None) -> tuple[Reward, Reward]:
        """Of answers that are trained on, and of held-out ones, which the rule judges where there is one."""
        own = self._cfg.reward_model
        if own is None or model is None:
            return rule, rule
        alone = no_rule(self._cfg)
        judged = JudgedReward(rule, model, own.weight, judges_alone=alone)
        return judged, judged if alone else rule

    def _group(self, name: str, worker: Any, arguments: list[tuple], nodes: Sequence[int]) -> WorkerGroup:
        cluster, gpus = self._cluster, self._devices.visible.get(name, [""] * len(nodes))
        trains = not name.startswith("engine")
        actors = [
            worker.options(
                runtime_env={"env_vars": environment(cluster.interfaces[node], visible, trains=trains)},
                **cluster.place(node),
            ).remote(*given)
            for given, node, visible in zip(arguments, nodes, gpus, strict=True)
        ]
        return WorkerGroup(name, actors, cluster.logs, self._cfg.cluster.step_timeout_s)
