"""Processes of one gloo group that run functions on request: started once, used for many scenarios."""

import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from trainer_ranks import _CONTEXT  # one server for all tests, which has imported torch once

_ANSWER_S = 60.0


class GlooRanks:
    """A context manager. A rank that raises leaves the others waiting: use a fresh group after that."""

    def __init__(self, world_size: int, *, timeout_s: float = 20.0) -> None:
        """
        Args:
            timeout_s: of the group's operations.
        """
        self.size = world_size
        self._folder = tempfile.TemporaryDirectory()
        store = f"file://{self._folder.name}/rendezvous"
        self._pipes, self._processes = [], []
        for rank in range(world_size):
            ours, theirs = _CONTEXT.Pipe()
            args = (rank, world_size, timeout_s, store, theirs)
            process = _CONTEXT.Process(target=_rank, args=args, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> "GlooRanks":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """function(group, *args) on every rank; what each returned, in the order of ranks.

        Args:
            function: defined in a module that a new process can import.

        Raises:
            AssertionError: a rank raised, died or took too long; carries its traceback.
        """
        self.begin(function, *args)
        answers = [self._answer(rank) for rank in range(len(self._pipes))]
        failures = [value for worked, value in answers if not worked]
        assert not failures, "\n".join(failures)
        return [value for _, value in answers]

    def begin(self, function: Callable[..., Any], *args: Any) -> None:
        for rank in range(self.size):
            self.begin_on(rank, function, *args)

    def begin_on(self, rank: int, function: Callable[..., Any], *args: Any) -> None:
        self._pipes[rank].send((function, args))

    def answer(self, rank: int) -> Any:
        worked, value = self._answer(rank)
        assert worked, value
        return value

    def _answer(self, rank: int) -> tuple[bool, Any]:
        assert self._pipes[rank].poll(_ANSWER_S), f"rank {rank} did not answer within {_ANSWER_S} s"
        return self._pipes[rank].recv()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def kill(self, rank: int) -> None:
        self._processes[rank].kill()
        self._processes[rank].join()

    def stop(self, rank: int) -> None:
        """It stays there, but does nothing any more."""
        os.kill(self._processes[rank].pid, signal.SIGSTOP)


def _rank(rank: int, world_size: int, timeout_s: float, store: str, orders: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size, timeout=timeout)
    while True:
        function, args = orders.recv()
        try:
            orders.send((True, function(dist.group.WORLD, *args)))
        except BaseException:  # the parent gets the reason
            orders.send((False, f"rank {rank} raised:\n{traceback.format_exc()}"))
