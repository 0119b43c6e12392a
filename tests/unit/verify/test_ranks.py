"""Processes that fail say who and where, and the next call gets new ones."""

import os
import time

import pytest

from hybridrl.errors import ConfigError, HybridRLError, WorkerError
from hybridrl.verify.ranks import RankGroup


def add(rank, rendezvous, number):
    assert rendezvous.startswith("file://")
    return rank, number + 1, os.environ["CUDA_VISIBLE_DEVICES"]


def divide(rank, rendezvous, number):
    if rank == 1:
        return number / 0
    time.sleep(60)


def refuse(rank, rendezvous):
    raise ConfigError("no such loss", where="algorithm.loss", fix="another")


def die(rank, rendezvous):
    os._exit(3) if rank else time.sleep(60)


def sleep(rank, rendezvous):
    time.sleep(60)


def test_a_group_answers_and_survives_every_kind_of_failure():
    with RankGroup(2, timeout_s=50.0, backend="megatron") as group:
        assert group(add, 1) == (0, 2, "")
        with pytest.raises(WorkerError, match=r"rank 1 raised ZeroDivisionError.*test_ranks.py:\d+"):
            group(divide, 1)
        assert group(add, 5) == (0, 6, "")
        with pytest.raises(ConfigError, match="no such loss") as caught:
            group(refuse)
        assert isinstance(caught.value, HybridRLError) and caught.value.fix == "another"
        with pytest.raises(WorkerError, match="rank 1 died"):
            group(die)
    with (
        RankGroup(1, timeout_s=0.2, backend="megatron") as group,
        pytest.raises(WorkerError, match=r"\[0\] did not answer"),
    ):
        group(sleep)
