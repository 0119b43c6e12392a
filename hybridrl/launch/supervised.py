"""Training on examples, driven from this machine: `hybridrl sft` and `hybridrl rm`."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from hybridrl.cluster.group import WorkerGroup
from hybridrl.cluster.placement import anywhere
from hybridrl.cluster.ray_local import local_ray
from hybridrl.config.load import LoadedConfig, load_as
from hybridrl.config.problems import refuse
from hybridrl.config.rules import EXAMPLE_RULES, World
from hybridrl.config.run_folder import RunFolder, path_of
from hybridrl.config.schema import SourceConfig
from hybridrl.config.supervised import RMConfig, SFTConfig
from hybridrl.controller import supervised as loop
from hybridrl.data.example_source import TableExamples, load_examples
from hybridrl.data.examples import Conversations, ExampleFormat, Pairs
from hybridrl.data.tokenize import ModelTokenizer, load_tokenizer
from hybridrl.errors import HybridRLError
from hybridrl.hosts.machine import GPU, Machine
from hybridrl.launch.devices import environment, with_gpus
from hybridrl.launch.limits import refuse_nodes
from hybridrl.launch.preflight import Say
from hybridrl.launch.resume import checkpoint_of
from hybridrl.launch.shape import RunFiles, with_dp
from hybridrl.launch.stop import STOPPED, StopRequest
from hybridrl.layout.trainers import layout_of
from hybridrl.models import hub
from hybridrl.models.make import find_maker, make_model
from hybridrl.models.spec import ModelSpec, without_vocabulary
from hybridrl.observe.examples import ExampleRunObserver
from hybridrl.observe.terminal import Terminal
from hybridrl.trainer.checkpoints import Checkpoint
from hybridrl.trainer.setup import RankSetup
from hybridrl.workers.supervised import RaySupervised, SupervisedWorker

Of = TypeVar("Of", SFTConfig, RMConfig)


@dataclass(frozen=True, slots=True)
class Kind(Generic[Of]):
    """What is trained."""

    config: type[Of]
    form: Callable[[Any, ModelTokenizer, str], ExampleFormat]
    spec: Callable[[ModelSpec], ModelSpec]
    """Of the model that is trained, from that of the folder."""


SFT = Kind(SFTConfig, Conversations, lambda spec: spec)
RM = Kind(RMConfig, Pairs, lambda spec: spec if spec.value_head else without_vocabulary(spec, head="value"))


def launch(
    kind: Kind[Any], path: Path, overrides: Sequence[str], say: Say, *, resume: bool, dry_run: bool
) -> int:
    """Check a config and train.

    Returns:
        Exit code: 0, or STOPPED if the run stopped early and can be resumed.

    Raises:
        HybridRLError: its place is the line of the config that it is about.
    """
    loaded = load_as(kind.config, path, overrides)
    try:
        return _launch(kind, loaded, say, resume=resume, dry_run=dry_run)
    except HybridRLError as error:
        raise cast(Any, loaded).locate(error) from error


def _launch(kind: Kind[Any], loaded: LoadedConfig[Any], say: Say, *, resume: bool, dry_run: bool) -> int:
    machine = Machine.here()
    loaded = with_gpus(loaded, machine)
    say("doctor", machine.describe())
    refuse_nodes(loaded, "cluster.nodes=1")
    folder = _model_folder(loaded, dry_run=dry_run)
    spec = hub.find_spec(str(folder))
    world = World(num_gpus=len(machine.gpus), spec=spec)
    refuse([error for rule in EXAMPLE_RULES for error in rule(loaded, world)])
    if not folder.is_dir():
        say("dry run", f"nothing started; {loaded.config.model.path} would be downloaded or made")
        return 0
    assert spec is not None, "a folder without a model was refused"
    layout_of(loaded.config.actor.backend).refuse_unbuildable(spec, where=str(folder))
    data = Data.open(kind, loaded, folder)
    say("data", data.describe())
    if dry_run:
        say("dry run", f"nothing started; the run would live in {path_of(loaded.config)}")
        return 0
    run_folder = RunFolder.open_for_resume(loaded) if resume else RunFolder.create(loaded)
    try:
        return _train(loaded.config, kind.spec(spec), folder, data, resume=resume)
    finally:
        run_folder.release()


def _model_folder(loaded: LoadedConfig[Any], *, dry_run: bool) -> Path:
    """Made, or downloaded, if it is not there."""
    model = loaded.config.model
    if not Path(model.path).is_dir() and model.make is not None:
        place = loaded.where("model.make")
        find_maker(model.make, where=place)
        if not dry_run:
            make_model(model.make, Path(model.path), loaded.config.run.seed, where=place)
    if hub.is_name(model.path) and not dry_run:
        return hub.fetch(model.path, where=loaded.where("model.path"))
    return hub.find_folder(model.path) or Path(model.path)


@dataclass(frozen=True, slots=True)
class Data:
    train: TableExamples
    heldout: TableExamples | None

    @classmethod
    def open(cls, kind: Kind[Any], loaded: LoadedConfig[Any], folder: Path) -> "Data":
        """
        Raises:
            DataError, ConfigError, ModelError: data or tokenizer are not as the config says.
        """
        cfg, tokenizer = loaded.config, load_tokenizer(str(folder))

        def examples(source: SourceConfig, split: str) -> TableExamples:
            where = loaded.where(f"data.{split}.path", f"data.{split}.task")
            return load_examples(
                source,
                kind.form(cfg.data, tokenizer, where),
                split=split,
                seed=cfg.run.seed,
                shuffle=cfg.data.shuffle,
                max_tokens=cfg.actor.microbatch_tokens,
                where=where,
            )

        heldout = cfg.data.heldout
        return cls(examples(cfg.data.train, "train"), examples(heldout, "heldout") if heldout else None)

    def describe(self) -> str:
        """One line for a person."""
        heldout = f"{len(self.heldout):,}" if self.heldout else "none"
        return f"{len(self.train):,} examples, {heldout} held out"


def _train(
    cfg: SFTConfig | RMConfig, spec: ModelSpec, model_folder: Path, data: Data, *, resume: bool
) -> int:
    terminal, files = Terminal(), RunFiles(Path(cfg.run.folder) / cfg.run.name)
    checkpoint = checkpoint_of(files, spec, "required" if resume else "never", terminal)
    if checkpoint:
        data.train.load_state_dict(checkpoint.progress["examples"])
    num_ranks = with_dp(cfg.actor.parallel, cfg.cluster).num_ranks
    with (
        StopRequest(terminal.warn) as stop,
        ExampleRunObserver(cfg, terminal, resume_step=checkpoint.step if checkpoint else None) as observe,
        local_ray(num_workers=num_ranks) as logs,
    ):
        stop.listen()
        gpus = Machine.here().gpus[: cfg.cluster.gpus_per_node or 0]
        workers = _workers(cfg, spec, model_folder, gpus, Path(logs))
        trainer = RaySupervised(workers, cfg.cluster, files.checkpoints, cfg.run.keep_checkpoints)
        try:
            asyncio.run(_play(cfg, trainer, data, observe, stop, files, checkpoint))
        finally:
            workers.kill()
        stopped_by = stop.signal if trainer.version < cfg.run.steps else None
        exported = str(files.export) if cfg.run.export and not stopped_by else None
        observe.finish(exported, stopped_by=stopped_by, facts={"ranks": num_ranks})
    return STOPPED if stopped_by else 0


async def _play(
    cfg: SFTConfig | RMConfig,
    trainer: RaySupervised,
    data: Data,
    observe: ExampleRunObserver,
    stop: StopRequest,
    files: RunFiles,
    checkpoint: Checkpoint | None,
) -> None:
    with observe.terminal.working("ray", f"{len(trainer.workers)} trainer ranks start, loopback only"):
        await trainer.workers.learn_pids(timeout_s=cfg.cluster.start_timeout_s)
        await trainer.build(checkpoint.folder if checkpoint else None, checkpoint.step if checkpoint else 0)
    stop.begin()
    roles = loop.ExampleRoles(
        train=data.train,
        heldout=data.heldout.all() if data.heldout else [],
        trainer=trainer,
        observe=observe,
        stop_requested=stop.requested,
    )
    await loop.run(cfg, roles)
    if cfg.run.export and trainer.version == cfg.run.steps:
        await trainer.export(files.export)


def _workers(
    cfg: SFTConfig | RMConfig, spec: ModelSpec, model_folder: Path, gpus: Sequence[GPU], logs: Path
) -> WorkerGroup:
    parallel = with_dp(cfg.actor.parallel, cfg.cluster)
    first = RankSetup(
        rank=0,
        rendezvous=f"file://{logs.resolve() / f'trainers-{secrets.token_hex(8)}'}",
        parallel=parallel,
        model=spec,
        model_folder=model_folder,
        actor=cfg.actor,
        seed=cfg.run.seed,
        timeout_s=cfg.cluster.step_timeout_s,
        device=0 if gpus else None,  # a worker sees its own GPU only
        deterministic=cfg.run.deterministic,
    )
    ranks = []
    for rank in range(parallel.num_ranks):
        variables = environment("lo", str(gpus[rank].index) if gpus else "", trains=True)
        worker = cast(Any, SupervisedWorker).options(runtime_env={"env_vars": variables}, **anywhere(0))
        ranks.append(worker.remote(replace(first, rank=rank), cfg.run.steps))
    return WorkerGroup("trainer", ranks, logs, cfg.cluster.step_timeout_s)
