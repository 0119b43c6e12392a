"""Which disk is full, since an error of a write does not say it."""

import errno
import shutil
from collections.abc import Iterable
from pathlib import Path

from hybridrl.errors import ResourceError

_FULL_BYTES = 1 << 20
"""Free bytes below which a disk counts as full: what did not fit may have been larger than what is left."""


def full_disk(error: OSError, folders: Iterable[Path]) -> ResourceError | None:
    """The error for a person of a write that found no room.

    Args:
        folders: folders that the program writes to; of several full ones, the first is named.

    Returns:
        None: the error is of something else, or none of the folders is full.
    """
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    for folder in folders:
        if folder.exists() and shutil.disk_usage(folder).free < _FULL_BYTES:
            return ResourceError(
                f"the disk of {folder} is full: {error.strerror}",
                where=str(error.filename or ""),
                fix="make room there; --resume continues the run from its last checkpoint",
            )
    return None
