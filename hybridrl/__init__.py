"""hybridrl: reinforcement learning of language models with Megatron-core and colocated SGLang engines."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridrl.library.run import Run

__version__ = "0.1.0"


def open(config: str | Path, *, resume: bool = False, quiet: bool = True, **changes: Any) -> "Run":
    """Start the run of a config, and return it once its workers are up: docs/python.md.

    with hybridrl.open("my.yaml", run={"steps": 50}) as run:
        run.fit()

    Args:
        resume: go on from the newest checkpoint of the run.
        quiet: print nothing; warnings go to Python's logging.
        changes: values of the config by section, as run={"steps": 50}.

    Raises:
        HybridRLError: what `hybridrl launch` refuses or fails at.
    """
    from hybridrl.library.run import open_run  # it imports torch and Ray

    return open_run(config, changes, resume=resume, quiet=quiet)
