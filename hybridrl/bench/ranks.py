"""Processes of a benchmark, one per rank, forked from a server that has imported the trainer once."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing.spawn import start_processes

_SERVER = multiprocessing.get_context("forkserver")


def on_ranks(num_ranks: int, function: Callable[..., None], *args: Any) -> None:
    """function(rank, *args) on every rank, in a process that has run nothing yet; returns when all are done.

    Raises:
        ProcessRaisedException: a rank raised; carries its traceback.
    """
    _SERVER.set_forkserver_preload(["hybridrl.trainer.megatron.policy"])
    start_processes(function, args, nprocs=num_ranks, start_method="forkserver")
