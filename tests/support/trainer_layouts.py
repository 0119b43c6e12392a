"""Parallel layouts of both backends on which a signal of an algorithm is tried, and their model."""

import pytest

from hybridrl.config.training import TrainParallel

LAYOUTS = {
    "one rank": (1, TrainParallel(dp=1)),
    "dp 2": (2, TrainParallel(dp=2)),
    "tp 2": (2, TrainParallel(tp=2, dp=1)),
    "pp 2": (2, TrainParallel(pp=2, dp=1)),
    "cp 2": (2, TrainParallel(cp=2, dp=1)),
    "fsdp x2": (2, TrainParallel(dp=2)),
    "fsdp tp 2": (2, TrainParallel(tp=2, dp=1)),
    "fsdp cp 2": (2, TrainParallel(cp=2, dp=1)),
}
"""Name -> number of ranks, and their layout."""

_SLOW = ("tp 2", "pp 2", "fsdp tp 2", "fsdp cp 2")

EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name in _SLOW)) for name in LAYOUTS]
