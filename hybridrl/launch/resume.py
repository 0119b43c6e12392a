"""Which checkpoint a run goes on from: chosen and verified before a worker starts."""

from hybridrl.launch.shape import Resume, RunFiles
from hybridrl.models.spec import ModelSpec
from hybridrl.observe.terminal import Terminal
from hybridrl.trainer.checkpoints import Checkpoint, to_resume_from


def checkpoint_of(files: RunFiles, model: ModelSpec, resume: Resume, terminal: Terminal) -> Checkpoint | None:
    """The newest undamaged checkpoint; a person is told of newer ones that are passed over.

    Args:
        model: of the run's config.

    Returns:
        None: the run starts anew.

    Raises:
        CheckpointError: as trainer.checkpoints.to_resume_from; before anything has started.
    """
    if resume == "never":
        return None
    with terminal.working("resume", "checksums of the newest checkpoint"):
        return to_resume_from(files.checkpoints, model, required=resume == "required", warn=terminal.warn)
