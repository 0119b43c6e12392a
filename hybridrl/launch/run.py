"""A run on this machine, whatever it trains on, from a checked config to the exported model:

    with StopRequest(terminal.warn) as stop, SomeRun(...) as run:
        asyncio.run(run.play())
        run.finish()

Reinforcement learning (local.py) and training on examples (supervised_run.py) share this code: the folder,
the checkpoint to resume from, the observer, Ray, the stop, the export.
"""

import contextlib
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

from hybridrl.config.load import LoadedConfig
from hybridrl.config.run_folder import RunFolder, path_of
from hybridrl.config.schema import Config
from hybridrl.config.sft_rm import SupervisedConfig
from hybridrl.errors import HybridRLError
from hybridrl.hosts.disks import full_disk
from hybridrl.launch.ray_cluster import Cluster
from hybridrl.launch.restarts import LOSSES
from hybridrl.launch.shape import Resume, RunFiles
from hybridrl.launch.stop import StopRequest
from hybridrl.models.spec import ModelSpec
from hybridrl.observe.examples import ExampleRunObserver
from hybridrl.observe.observer import RunObserver
from hybridrl.observe.terminal import Terminal
from hybridrl.report.advice import short as short_advice
from hybridrl.report.page import REPORT_FILE
from hybridrl.report.page import write as write_report
from hybridrl.report.run_data import read_run
from hybridrl.trainer.checkpoints import Checkpoint, to_resume_from, whole_checkpoints
from hybridrl.workers.supervised_trainer import RaySupervised
from hybridrl.workers.trainer import RayTrainer

Cfg = TypeVar("Cfg", bound=Config | SupervisedConfig)
Observer = TypeVar("Observer", bound=RunObserver | ExampleRunObserver)


class Run(ABC, Generic[Cfg, Observer]):
    """One start of a run, until it ends, stops or fails.

    Inside the context this process holds the run's folder, the data are at the position of the checkpoint,
    the observer's files are open and Ray is up. Leaving it closes and ends all of that, whatever happened.
    """

    following: ClassVar[Sequence[tuple[str, str]]] = ()
    """Commands that the end of a run proposes after those about the run itself, and the purpose of each."""

    observe: Observer
    cluster: Cluster

    def __init__(
        self,
        loaded: LoadedConfig[Any],
        cfg: Cfg,
        model: ModelSpec,
        terminal: Terminal,
        stop: StopRequest,
        *,
        resume: Resume,
    ) -> None:
        """
        Args:
            loaded: a config that passed its checks; the run folder keeps it.
            cfg: the same config, with model names replaced by folders.
            model: the model that is trained.
            resume: if_possible and required take a folder that holds a run; required also needs a checkpoint.
        """
        self.loaded, self.cfg, self.model, self.terminal, self.stop = loaded, cfg, model, terminal, stop
        self.files = RunFiles(path_of(cfg))
        self.checkpoint: Checkpoint | None = None
        self._resume = resume

    def __enter__(self) -> Self:
        """
        Raises:
            RunFolderError, ConfigErrors: the folder cannot be taken, or holds a run of another config.
            CheckpointError: there is no undamaged checkpoint, and `resume` demands one, or it is of another
                model.
            DataError: data are not as the config says.
            ResourceError: the cluster lacks room.
        """
        with contextlib.ExitStack() as opened:
            resumes = self._resume != "never"
            take = RunFolder.open_for_resume if resumes else RunFolder.create
            opened.enter_context(take(self.loaded))
            if resumes:
                with self.terminal.working("resume", "checksums of the newest checkpoint"):
                    self.checkpoint = self.newest_checkpoint(required=self._resume == "required")
            with self.terminal.progress("data", "reading, and trying the reward"):
                self.prepare(self.checkpoint.progress if self.checkpoint else None)
            self._session = opened.enter_context(contextlib.ExitStack())
            self.observe = self._session.enter_context(self.observer(self.start_step if resumes else None))
            self.observe.keep(self.files.folder / "resolved.yaml")
            self.cluster = opened.enter_context(self.start_ray())
            self.stop.listen()
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, KeyboardInterrupt) and self.stop.has_begun:
                self._finish_interrupted()  # it leaves its curve and summary too
        finally:
            try:
                self._opened.__exit__(kind, error, trace)
            except OSError as closing:  # files that are closed run into a full disk once more
                self._tell_full_disk(closing)
                raise
        if isinstance(error, OSError):
            self._tell_full_disk(error)

    def _tell_full_disk(self, error: OSError) -> None:
        """
        Raises:
            ResourceError: the error is of a disk that is full.
        """
        places = (self.files.folder, Path(tempfile.gettempdir()), Path("/dev/shm"))
        if found := full_disk(error, places):
            raise found from error

    async def play(self) -> None:
        """Start the workers, train, export, stop the workers."""
        with self.guarded():
            async with self.workers() as (trainer, roles):
                self.stop.begin()
                while True:
                    try:
                        await self.train(roles)
                        break
                    except LOSSES as error:
                        trainer, roles = await self.begin_again(error)
                if trainer.version < self.cfg.run.steps:
                    self.stop.stopped_by = self.stop.signal
                elif self.cfg.run.export:
                    shutil.rmtree(self.files.export, ignore_errors=True)  # left by an earlier end of this run
                    with self.observe.span("export"):
                        await trainer.export(self.files.export)

    async def begin_again(self, error: HybridRLError) -> tuple[RayTrainer | RaySupervised, Any]:
        """Start the trainer again inside this start of the run, after its workers died or hung; returns it
        and the roles of the loop.

        Raises: `error`, if that is not possible.
        """
        raise error

    def finish(self) -> None:
        """Draw the curve, write the summary, and print where the files are."""
        stopped_by = self.stop.stopped_by
        files = {"model": f"{self.files.export}/"} if self.cfg.run.export and not stopped_by else {}
        following = () if stopped_by else (*self.about_itself, *filter(_is_for_here, self.following))
        self._end(files, following, stopped_by)

    def _finish_interrupted(self) -> None:
        saved = whole_checkpoints(self.files.checkpoints)
        kept = f"step {saved[-1].step} is saved" if saved else "no step is saved"
        self.terminal.warn(f"interrupted: {kept}")
        self._end({}, (), self.stop.signal or "SIGINT")

    def _end(
        self, files: Mapping[str, str], following: Sequence[tuple[str, str]], stopped_by: str | None
    ) -> None:
        report = {"report": str(self.files.folder / REPORT_FILE)}
        self.observe.finish({**files, **report}, following, self.facts, stopped_by)
        self._write_report()

    def _write_report(self) -> None:
        try:
            run = read_run(self.files.folder)
            self.observe.keep(write_report(run))
            for line in short_advice(run):
                self.terminal.line(line)
        except Exception as error:  # the run has ended well, and hybridrl report can be called again
            self.terminal.warn(f"no report was written: {type(error).__name__}: {error}")

    def newest_checkpoint(self, *, required: bool) -> Checkpoint | None:
        """The checkpoint to go on from, after a look at its checksums.

        Raises:
            CheckpointError: there is no undamaged one, and it is required, or it is of another model.
        """
        return to_resume_from(self.files.checkpoints, self.model, required=required, warn=self.terminal.warn)

    @property
    def about_itself(self) -> Sequence[tuple[str, str]]:
        """Commands about the run that its end proposes, and the purpose of each."""
        return ()

    @property
    def start_step(self) -> int:
        """Policy updates that were done before this start."""
        return self.checkpoint.step if self.checkpoint else 0

    def guarded(self) -> contextlib.AbstractContextManager[None]:
        """A context of `play` that notices if this process itself hangs."""
        return contextlib.nullcontext()

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """Further entries of summary.json."""

    @abstractmethod
    def prepare(self, progress: Mapping[str, Any] | None) -> None:
        """Open the data.

        Args:
            progress: the controller's progress in the checkpoint; None: the run begins.
        """

    @abstractmethod
    def observer(self, resume_step: int | None) -> Observer: ...

    @abstractmethod
    def start_ray(self) -> contextlib.AbstractContextManager[Cluster]: ...

    @abstractmethod
    def workers(self) -> contextlib.AbstractAsyncContextManager[tuple[RayTrainer | RaySupervised, Any]]:
        """Start all workers with their initial weights; yields the trainer and the roles of the loop. Leaving
        the context stops the workers, whatever happened."""

    @abstractmethod
    def train(self, roles: Any) -> Coroutine[Any, Any, None]:
        """The training loop, which runs to the last step or until a stop is requested."""


def _is_for_here(following: tuple[str, str]) -> bool:
    """Whether the configs that a command names are here: those of the project are not installed with it."""
    command, _ = following
    return all(Path(word).is_file() for word in command.split() if word.endswith(".yaml"))
