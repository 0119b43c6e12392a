"""The object store of a run, run.store: its checkpoints go there, and come back where they are missing."""

from collections.abc import Callable
from typing import Any

from hybridrl.config.load import LoadedConfig
from hybridrl.config.run_folder import is_held, path_of
from hybridrl.config.schema import Config, RunConfig
from hybridrl.errors import HybridRLError, RunFolderError
from hybridrl.launch.shape import Resume, RunFiles
from hybridrl.trainer.checkpoints import Keep
from hybridrl.trainer.store import Mirror, Store, bring_back

_FILES = ("resolved.yaml", "metrics.jsonl")
"""Files of the run folder that a resume needs."""


def mirror_of(run: RunConfig, files: RunFiles, warn: Callable[[str, str], None]) -> Mirror | None:
    """Begin to copy the checkpoints of a run; None: they are in its folder only."""
    if run.store is None:
        return None
    keep = Keep(run.keep_checkpoints, run.keep_every)
    others = {name: files.folder / name for name in _FILES}
    goes_on = run.on_save_error == "go_on"
    return Mirror(Store(run.store, run.name), files.checkpoints, keep, others, warn if goes_on else None)


def fetch(loaded: LoadedConfig[Any], resume: Resume, say: Callable[[str, str], None]) -> None:
    """Bring a newer checkpoint from the store of a run that is to go on.

    Raises:
        RunFolderError: the store does not answer, or a new run would write over the copies of another one.
    """
    cfg = loaded.config
    if not isinstance(cfg, Config) or cfg.run.store is None:
        return
    files = RunFiles(path_of(cfg))
    if is_held(files.folder):  # the run goes on, and is refused later
        return
    try:
        store = Store(cfg.run.store, cfg.run.name)
        if resume == "never":
            _refuse_to_overwrite(store, loaded.where("run.store"))
            return
        step = bring_back(store, files.folder, files.checkpoints, lambda text: say("store", text))
    except HybridRLError:
        raise
    except Exception as error:  # each protocol has its own
        raise RunFolderError(
            f"run.store = {cfg.run.store} does not answer: {type(error).__name__}: {error}",
            where=loaded.where("run.store"),
            fix="run.store=null goes on from the checkpoints of the run folder",
        ) from error
    if step is not None:
        say("store", f"step {step} was copied from {store.url} to {files.checkpoints}")


def _refuse_to_overwrite(store: Store, where: str) -> None:
    if steps := store.steps():
        raise RunFolderError(
            f"a run of this name has checkpoints in {store.url}, the last of step {steps[-1]}",
            where=where,
            fix="--resume goes on from it, run.name=... starts another run",
        )
