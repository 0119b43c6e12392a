"""Hundreds of swaps leave memory, descriptors and /dev/shm as they were, on both sides."""

import os
from pathlib import Path

import numpy as np
import pytest
from model_values import tiny
from swap_workers import Stage

from hybridrl.layout.sglang import SGLangLayout
from hybridrl.layout.vllm import VLLMLayout

NUM_SWAPS, PUSHES_PER_CONNECTION = 500, 10
SPEC = tiny(hidden_size=64, num_heads=8, num_kv_heads=4, head_dim=16, ffn_size=256, vocab_size=2000)

WARM_UP = 200
"""Swaps after which allocators have what they need."""

KIB_PER_SWAP = 1.0
"""Allocators drift by half of this. A table of boxes kept for every connection exceeds it."""


def resident_kib(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def slope(swaps, values):
    """Of the least-squares line, per swap."""
    return np.polyfit(swaps, values, 1)[0]


@pytest.fixture(params=[SGLangLayout, VLLMLayout])
def stage(request):
    stage = Stage(SPEC, layout=request.param)
    yield stage
    stage.end()


@pytest.mark.slow
def test_five_hundred_swaps_leave_nothing_behind(stage):
    pids = [actor.process.pid for group in (stage.engines, stage.writers) for actor in group.actors]
    swaps, resident, descriptors = [], [], []
    for first in range(0, NUM_SWAPS, PUSHES_PER_CONNECTION):
        stage.push(*range(first, first + PUSHES_PER_CONNECTION))
        swaps.append(first + PUSHES_PER_CONNECTION)
        resident.append([resident_kib(pid) for pid in pids])
        descriptors.append([len(os.listdir(f"/proc/{pid}/fd")) for pid in pids])
    assert stage.beside("request") == [(NUM_SWAPS - 1, True)] * 2
    warm = [index for index, swap in enumerate(swaps) if swap > WARM_UP]
    growth = slope(np.array(swaps)[warm], np.array(resident)[warm])
    assert (growth < KIB_PER_SWAP).all(), growth
    assert len(set(map(tuple, descriptors))) == 1, descriptors
    ours = tuple(f"torch_{pid}_" for pid in (os.getpid(), *pids))
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(ours)]
