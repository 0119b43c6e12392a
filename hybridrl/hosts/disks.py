"""Which disk is full, since an error of a write does not say it."""

import errno
import shutil
from collections.abc import Iterable
from pathlib import Path

from hybridrl.errors import ResourceError

_FULL_BYTES = 64 << 20
"""Free bytes below which a disk counts as full. What did not fit may have been larger than what is left, and
the program may have deleted since what it had begun to write."""


def full_disk(error: OSError, folders: Iterable[Path]) -> ResourceError | None:
    """The error for a person of a write that found no room.

    Args:
        folders: folders that the program writes to; the one with the least room is named.

    Returns:
        None: the error is of something else, or none of the folders is full.
    """
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    free = {folder: shutil.disk_usage(folder).free for folder in folders if folder.exists()}
    fullest = min(free, key=free.__getitem__, default=None)
    if fullest is None or free[fullest] >= _FULL_BYTES:
        return None
    return ResourceError(
        f"the disk of {fullest} is full: {error.strerror}",
        where=str(error.filename or ""),
        fix="make room there; --resume continues the run from its last checkpoint",
    )
