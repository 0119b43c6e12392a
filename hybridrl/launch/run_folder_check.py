"""Checks the folder of a run before anything is made, downloaded or started for it."""

from typing import Any

from hybridrl.config.load import LoadedConfig
from hybridrl.config.run_folder import path_of, refuse_unusable
from hybridrl.errors import RunFolderError
from hybridrl.launch.shape import Resume, RunFiles
from hybridrl.observe.summary import SUMMARY_FILE
from hybridrl.wording import counted


def refuse_unfit_folder(loaded: LoadedConfig[Any], resume: Resume) -> None:
    """Refuse a folder that the run cannot be in, or, to resume, one whose run has no step left.

    Raises:
        RunFolderError, ConfigErrors: as RunFolder.create or RunFolder.open_for_resume.
        RunFolderError: the run is at its last step or beyond.
    """
    refuse_unusable(loaded, resume=resume != "never")
    if resume == "never":
        return
    path, steps, done = path_of(loaded.config), loaded.config.run.steps, _newest_step(loaded)
    fix = "run.steps=N with a larger N trains on; hybridrl export makes its model again"
    if done > steps:
        what = f"{path} is at step {done}, beyond the last of the {counted(steps, 'step')} of run.steps"
        raise RunFolderError(what, where=loaded.where("run.steps"), fix=fix)
    if resume == "required" and is_finished(loaded):
        what = f"{path} has done all of its {counted(steps, 'step')}"
        raise RunFolderError(what, where=loaded.where("run.steps"), fix=fix)


def is_finished(loaded: LoadedConfig[Any]) -> bool:
    """Whether the run has done its last step and left all of its files."""
    run, files = loaded.config.run, RunFiles(path_of(loaded.config))
    left = (files.folder / SUMMARY_FILE).is_file() and (files.export.is_dir() or not run.export)
    return left and _newest_step(loaded) == run.steps


def _newest_step(loaded: LoadedConfig[Any]) -> int:
    # Imported here: it imports torch, for which a launch of a new run need not wait.
    from hybridrl.trainer.checkpoints import whole_checkpoints

    found = whole_checkpoints(RunFiles(path_of(loaded.config)).checkpoints)
    return found[-1].step if found else 0
