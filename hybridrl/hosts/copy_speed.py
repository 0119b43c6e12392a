"""How fast this machine copies memory: the bound of whatever moves bytes on it."""

import time

import numpy as np

_BYTES = 64 * 2**20
"""More than a cache holds."""


def copy_gb_s() -> float:
    """Gigabytes that one core writes in a second when it copies; takes about 0.1 s."""
    source, target = np.ones(_BYTES, np.uint8), np.zeros(_BYTES, np.uint8)
    return _BYTES / min(_seconds(source, target) for _ in range(3)) / 1e9


def _seconds(source: np.ndarray, target: np.ndarray) -> float:
    began = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - began
