"""Runs a function on trainer ranks, each in a process of its own, and gathers what they return.

The processes are forked from a server that has imported the trainer once: a group of them is up in a second.
"""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_TIMEOUT_S = 240.0
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["hybridrl.trainer.policy", "hybridrl.trainer.megatron.backend", "hybridrl.trainer.fsdp.backend"]
)


def on_ranks(world_size: int, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """function(rank, rendezvous, *args, **options) on every rank; what each returned, in the order of ranks.

    Args:
        function: defined in a module that a new process can import.
        rendezvous: passed to it, names a fresh one at every call: rendezvous() -> "file:///...".

    Raises:
        AssertionError: a rank raised, died or took too long; carries its traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(world_size)]
        processes = [
            _CONTEXT.Process(
                target=_rank, args=(rank, folder, pipes[rank][1], function, args, options), daemon=True
            )
            for rank in range(world_size)
        ]
        try:
            for process in processes:
                process.start()
            for _, sender in pipes:
                sender.close()
            return [_receive(rank, receiver) for rank, (receiver, _) in enumerate(pipes)]
        finally:
            for process in processes:
                process.kill()
                process.join()


class RendezvousFiles:
    """Names of rendezvous files, the same on every rank as long as all ask equally often."""

    def __init__(self, folder: str) -> None:
        self._folder, self._count = folder, 0

    def __call__(self) -> str:
        self._count += 1
        return f"file://{Path(self._folder) / f'rendezvous-{self._count}'}"


def _rank(
    rank: int, folder: str, results: Connection, function: Callable[..., Any], args: tuple, options: dict
) -> None:
    import torch

    from hybridrl.trainer.fsdp import network

    network.LEAST_UNIT = 1  # layers are gathered one by one, as those of models that are not tiny
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        results.send((True, function(rank, RendezvousFiles(folder), *args, **options)))
    except BaseException:  # the process ends here: the parent gets the reason
        results.send((False, traceback.format_exc()))


def _receive(rank: int, receiver: Connection) -> Any:
    assert receiver.poll(_TIMEOUT_S), f"rank {rank} did not answer within {_TIMEOUT_S} s"
    try:
        worked, value = receiver.recv()
    except EOFError:
        raise AssertionError(f"rank {rank} died") from None
    assert worked, f"rank {rank} raised:\n{value}"
    return value
