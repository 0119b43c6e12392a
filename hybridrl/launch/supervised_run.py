"""Training on examples, driven from this machine: `hybridrl sft` and `hybridrl rm`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from hybridrl.config.kind_names import KindOfConfig
from hybridrl.config.kinds import load_for
from hybridrl.config.load import LoadedConfig
from hybridrl.config.run_folder import path_of
from hybridrl.config.run_shape import trainer_gpus, with_dp
from hybridrl.config.schema import SourceConfig
from hybridrl.config.sft_rm import RMConfig, SFTConfig, SupervisedConfig
from hybridrl.controller import supervised_loop as loop
from hybridrl.data.examined import examine_example
from hybridrl.data.example_source import TableExamples, load_examples
from hybridrl.data.examples import Pairs
from hybridrl.data.source import open_rows
from hybridrl.data.tables import Table
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.dialogue.transcripts import SFTExamples
from hybridrl.hosts.machine import Machine
from hybridrl.launch import data_sets
from hybridrl.launch.data_warnings import suspicious
from hybridrl.launch.preflight import Say
from hybridrl.launch.ray_cluster import Cluster, ray_cluster
from hybridrl.launch.run import Run
from hybridrl.launch.run_folder_check import refuse_unfit_folder
from hybridrl.launch.shape import Resume
from hybridrl.launch.stop import StopRequest
from hybridrl.launch.verdict import SCOPES, verdict
from hybridrl.models import hub
from hybridrl.models.make import make_model
from hybridrl.models.spec import ModelSpec, without_vocabulary
from hybridrl.models.weights import refuse_unfit_weights
from hybridrl.observe.examples import ExampleRunObserver
from hybridrl.observe.progress import progress
from hybridrl.observe.terminal import Terminal
from hybridrl.trainer.checkpoints import Keep
from hybridrl.trainer.setup import RankSetup
from hybridrl.wording import counted
from hybridrl.workers.supervised_trainer import RaySupervised, SupervisedWorker

CfgKind = TypeVar("CfgKind", SFTConfig, RMConfig)


@dataclass(frozen=True, slots=True)
class Kind(Generic[CfgKind]):
    """A kind of training on examples: its command, its config, the format of its data, and its model."""

    command: KindOfConfig
    config: type[CfgKind]
    form: type[SFTExamples] | type[Pairs]
    spec: Callable[[ModelSpec], ModelSpec]
    """Spec of the model that is trained, from the spec of the folder."""


SFT = Kind("sft", SFTConfig, SFTExamples, lambda spec: spec)
RM = Kind(
    "rm",
    RMConfig,
    Pairs,
    lambda spec: spec if spec.value_head else without_vocabulary(spec, head="value"),
)


def launch(
    kind: Kind[Any], path: Path, overrides: Sequence[str], say: Say, *, resume: bool, dry_run: bool
) -> int:
    """Check a config and train.

    Returns:
        Exit code: 0, or STOPPED if the run stopped early and can be resumed.

    Raises:
        HybridRLError: its `where` is the line of the config that it is about.
    """
    loaded: LoadedConfig[Any] = load_for(kind.command, path, overrides)
    with loaded.located():
        resumes: Resume = "required" if resume else "never"
        loaded, spec, folder, data = _checked(kind, loaded, say, dry_run=dry_run, resume=resumes)
        if dry_run or data is None:
            say("dry run", f"nothing started; the run would live in {path_of(loaded.config)}")
            return 0
        terminal, machine = Terminal(), Machine.here()
        with (
            StopRequest(terminal.warn, saves_on_interrupt=loaded.config.run.save_on_interrupt) as stop,
            ExampleRun(loaded, kind.spec(spec), folder, data, machine, terminal, stop, resume=resume) as run,
        ):
            asyncio.run(run.play())
            run.finish()
        return stop.exit_code


def check(kind: Kind[Any], path: Path, overrides: Sequence[str], say: Say) -> None:
    """Check a config without starting anything.

    Raises:
        HybridRLError: as launch().
    """
    loaded: LoadedConfig[Any] = load_for(kind.command, path, overrides)
    with loaded.located():
        _checked(kind, loaded, say, dry_run=True)


def _checked(
    kind: Kind[Any], loaded: LoadedConfig[Any], say: Say, *, dry_run: bool, resume: Resume = "never"
) -> tuple[LoadedConfig[Any], ModelSpec, Path, "Data | None"]:
    """The config with the GPUs of this machine, the model, its folder, and the data if the folder is
    there."""
    machine, path, made = Machine.here(), loaded.config.model.path, loaded.config.model.make is not None
    say("doctor", machine.describe())
    if hub.is_name(path) and not made and hub.find_spec(path) is None and not dry_run:
        hub.fetch_spec(path, where=loaded.where("model.path"))
    found = verdict(loaded, SCOPES["launch"], machine)
    spec = found.known()
    refuse_unfit_folder(loaded, resume)
    folder = _model_folder(loaded, dry_run=dry_run)
    if not dry_run:
        data_sets.fetch(loaded, say)
    elif missing := data_sets.describe_absent(loaded):
        say("data", missing)
        return found.loaded, spec, folder, None
    if not folder.is_dir():
        say("model", f"{path} would be downloaded or made")
        for heading, text in _without_tokenizer(kind, loaded):
            say(heading, text)
        return found.loaded, spec, folder, None
    data = Data.open(kind, loaded, folder)
    say("data", data.describe())
    for warning in data.warnings:
        say("warning", warning)
    return found.loaded, spec, folder, data


def _without_tokenizer(kind: Kind[Any], loaded: LoadedConfig[Any]) -> Iterator[tuple[str, str]]:
    """Look at the columns of every row; yields headings and lines about the data.

    Raises:
        DataError, ConfigError: the data cannot be opened, or a row lacks a column.
    """
    data = loaded.config.data
    train = _rows(kind, loaded, data.train, "train")
    heldout = _rows(kind, loaded, data.heldout, "heldout") if data.heldout else None
    examples, held_out = counted(len(train), "example", form=","), len(heldout) if heldout else "none"
    yield "data", f"{examples}, {held_out} held out; their text is looked at once the model is here"
    yield from (("warning", text) for text in _suspicious(kind, loaded.config, train, heldout))


def _rows(kind: Kind[Any], loaded: LoadedConfig[Any], source: SourceConfig, split: str) -> Table:
    where, seed = loaded.where(f"data.{split}"), loaded.config.run.seed
    table = open_rows(source, split=split, seed=seed, where=where)[1]
    for _ in table.columns(kind.form.columns(loaded.config.data)):
        pass
    return table


def _suspicious(kind: Kind[Any], cfg: Any, train: Table, heldout: Table | None) -> Iterator[str]:
    key, per_step = "batch.examples_per_step", cfg.batch.examples_per_step
    prompt = cfg.data.prompt_field  # conversations have theirs inside
    columns = [*([prompt] if prompt in train[0] else []), *kind.form.columns(cfg.data)]
    columns = list(dict.fromkeys(columns))
    return suspicious(train, heldout, columns, noun="example", key=key, per_step=per_step)


def _model_folder(loaded: LoadedConfig[Any], *, dry_run: bool) -> Path:
    """Folder of the model, which is made or downloaded if it is not there."""
    model = loaded.config.model
    if not Path(model.path).is_dir() and model.make is not None and not dry_run:
        with progress("model", f"{model.make} writes {model.path}"):
            make_model(model.make, Path(model.path), loaded.config.run.seed, where=loaded.where("model.make"))
    if hub.is_name(model.path) and not dry_run:
        with progress("download", model.path, "bytes") as advance:
            return hub.fetch(model.path, where=loaded.where("model.path"), advance=advance)
    return hub.find_folder(model.path) or Path(model.path)


@dataclass(frozen=True, slots=True)
class Data:
    train: TableExamples
    heldout: TableExamples | None
    warnings: tuple[str, ...]
    """What is odd about the data, or about the text that template and tokenizer make of an example."""

    @classmethod
    def open(cls, kind: Kind[Any], loaded: LoadedConfig[Any], folder: Path) -> "Data":
        """
        Raises:
            DataError, ConfigError, ModelError: data or tokenizer are not as the config says.
        """
        refuse_unfit_weights(folder, where=loaded.where("model.path"))
        cfg, tokenizer = loaded.config, load_tokenizer(str(folder))

        def examples(source: SourceConfig, split: str) -> TableExamples:
            where = loaded.where(f"data.{split}")
            return load_examples(
                source,
                kind.form(cfg.data, tokenizer, where),
                split=split,
                seed=cfg.run.seed,
                shuffle=cfg.data.shuffle,
                max_tokens=cfg.actor.microbatch_tokens,
                where=where,
            )

        train = examples(cfg.data.train, "train")
        heldout = examples(cfg.data.heldout, "heldout") if cfg.data.heldout else None
        where = loaded.where("data.train")
        odd = examine_example(cfg.data, tokenizer, train.first(), place=train.rows.place(0), where=where)
        suspects = _suspicious(kind, cfg, train.rows, heldout.rows if heldout else None)
        return cls(train, heldout, (*suspects, *odd))

    def describe(self) -> str:
        """One line that describes the data."""
        heldout = f"{len(self.heldout):,}" if self.heldout else "none"
        return f"{counted(len(self.train), 'example', form=',')}, {heldout} held out"


class ExampleRun(Run[SupervisedConfig, ExampleRunObserver]):
    def __init__(
        self,
        loaded: LoadedConfig[Any],
        model: ModelSpec,
        model_folder: Path,
        data: Data,
        machine: Machine,
        terminal: Terminal,
        stop: StopRequest,
        *,
        resume: bool,
    ) -> None:
        """
        Args:
            model: spec of the model that is trained, whose weights come from the folder.
        """
        mode = "required" if resume else "never"
        super().__init__(loaded, loaded.config, model, terminal, stop, resume=mode)
        self._model_folder, self._data, self._machine = model_folder, data, machine
        self._parallel = with_dp(self.cfg.actor.parallel, trainer_gpus(self.cfg))

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"ranks": self._parallel.num_ranks}

    def prepare(self, progress: Mapping[str, Any] | None) -> None:
        if progress:
            self._data.train.load_state_dict(progress["examples"])

    def observer(self, resume_step: int | None) -> ExampleRunObserver:
        return ExampleRunObserver(self.cfg, self.terminal, resume_step=resume_step)

    def start_ray(self) -> contextlib.AbstractContextManager[Cluster]:
        return ray_cluster(self.cfg.cluster, [self._parallel.num_ranks], self._machine)

    @contextlib.asynccontextmanager
    async def workers(self) -> AsyncIterator[tuple[RaySupervised, loop.ExampleRoles]]:
        cfg, num_ranks = self.cfg, self._parallel.num_ranks
        gpus = self.cluster.gpus[0][:num_ranks]
        setups = [(setup, cfg.run.steps) for setup in self._setups(on_gpu=bool(gpus))]
        visible = {"trainer": gpus} if gpus else {}
        group = self.cluster.start(visible, "trainer", SupervisedWorker, setups, [0] * num_ranks)
        keep = Keep(cfg.run.keep_checkpoints, cfg.run.keep_every)
        trainer = RaySupervised(group, cfg.cluster, self.files.checkpoints, keep)
        try:
            start = counted(num_ranks, "trainer rank starts", "trainer ranks start")
            with self.terminal.working("ray", f"{start}, {self.cluster.described}"):
                await group.learn_pids(timeout_s=cfg.cluster.start_timeout_s)
                checkpoint = self.checkpoint.folder if self.checkpoint else None
                for note in await trainer.build(checkpoint, self.start_step):
                    self.terminal.warn(note)
            yield (
                trainer,
                loop.ExampleRoles(
                    train=self._data.train,
                    heldout=self._data.heldout.all() if self._data.heldout else [],
                    trainer=trainer,
                    observe=self.observe,
                    stop_requested=self.stop.requested,
                ),
            )
        finally:
            group.kill()

    def train(self, roles: loop.ExampleRoles) -> Coroutine[Any, Any, None]:
        return loop.run(self.cfg, roles)

    def _setups(self, *, on_gpu: bool) -> list[RankSetup]:
        cfg = self.cfg
        first = RankSetup(
            rank=0,
            rendezvous=self.cluster.rendezvous("trainers"),
            parallel=self._parallel,
            model=self.model,
            model_folder=self._model_folder,
            actor=cfg.actor,
            seed=cfg.run.seed,
            timeout_s=cfg.cluster.step_timeout_s,
            device=0 if on_gpu else None,  # a worker sees its own GPU only
            deterministic=cfg.run.deterministic,
        )
        return [replace(first, rank=rank) for rank in range(self._parallel.num_ranks)]
