"""Groups of trainer processes on this machine: started once for each number of ranks, used for many rows.

They are forked from a server that has imported the trainer once: a group is up in a second.
"""

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from hybridrl.errors import HybridRLError, WorkerError
from hybridrl.hosts.processes import on_cpu_alone
from hybridrl.trainer.setup import module_of

_CONTEXT = multiprocessing.get_context("forkserver")


class RankGroup:
    """A context manager. After an error the processes are gone; the next call starts new ones."""

    def __init__(self, num_ranks: int, timeout_s: float, backend: str) -> None:
        """
        Args:
            timeout_s: of one call.
            backend: that the ranks compute with.
        """
        self._preload = ["hybridrl.verify.measure", module_of(backend)]
        self._num_ranks, self._timeout_s = num_ranks, timeout_s
        self._folder = tempfile.TemporaryDirectory(prefix="hybridrl-verify-")
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._num_calls = 0

    def __enter__(self) -> "RankGroup":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._folder.cleanup()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(rank, rendezvous, *args) on every rank; what rank 0 returned.

        Args:
            function: defined in a module that a new process can import. If it raises a HybridRLError, it
                does so on every rank.

        Raises:
            HybridRLError: what the function raised.
            WorkerError: a rank raised something else, died, or took too long.
        """
        if not self._processes:
            self._start()
        self._num_calls += 1
        rendezvous = f"file://{self._folder.name}/rendezvous-{self._num_calls}"
        for pipe in self._pipes:
            pipe.send((function, rendezvous, args))
        try:
            return self._gather()[0]
        except BaseException:
            self._stop()
            raise

    def _start(self) -> None:
        _CONTEXT.set_forkserver_preload(self._preload)
        with on_cpu_alone():
            for rank in range(self._num_ranks):
                ours, theirs = _CONTEXT.Pipe()
                process = _CONTEXT.Process(target=_serve, args=(rank, theirs), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)

    def _stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._pipes, self._processes = [], []

    def _gather(self) -> list[Any]:
        """Answers in the order of ranks. The first failure ends it: the other ranks may wait for that one."""
        found: dict[int, Any] = {}
        deadline = time.monotonic() + self._timeout_s
        while len(found) < self._num_ranks:
            open_pipes = {pipe: rank for rank, pipe in enumerate(self._pipes) if rank not in found}
            ready = wait(list(open_pipes), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise WorkerError(f"ranks {sorted(open_pipes.values())} did not answer")
            for pipe in ready:
                rank = open_pipes[pipe]  # pyright: ignore[reportArgumentType]
                found[rank] = self._receive(rank)
        return [found[rank] for rank in range(self._num_ranks)]

    def _receive(self, rank: int) -> Any:
        try:
            kind, value = self._pipes[rank].recv()
        except (EOFError, ConnectionError):
            raise WorkerError(f"rank {rank} died") from None
        if kind == "refused":
            raise value
        if kind == "raised":
            raise WorkerError(f"rank {rank} raised {value}")
        return value


def _serve(rank: int, orders: Connection) -> None:
    """The life of a rank: call what is asked for, until it is killed."""
    import torch

    torch.set_num_threads(1)
    with on_cpu_alone():
        while True:
            function, rendezvous, args = orders.recv()
            try:
                orders.send(("value", function(rank, rendezvous, *args)))
            except HybridRLError as error:
                orders.send(("refused", error))
            except Exception as error:
                orders.send(("raised", _place(error)))


def _place(error: Exception) -> str:
    """One line: the error, and the innermost line of code."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error}, at {Path(frame.filename).name}:{frame.lineno}"
