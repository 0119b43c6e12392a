"""Groups of trainer processes on this machine, started once for each number of ranks and used for many rows.

They are forked from a fork server that has imported the trainer already, so a group starts in a second.
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
    """A group of rank processes, as a context manager.

    After an error the processes are ended, and the next call starts new ones.
    """

    def __init__(self, num_ranks: int, timeout_s: float, backend: str) -> None:
        """
        Args:
            timeout_s: timeout of one call.
            backend: trainer backend of the ranks, as in actor.backend.
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
        """Call function(rank, rendezvous, *args) on every rank; returns the result of rank 0.

        Args:
            function: a function of a module that a new process can import. If it raises a HybridRLError, it
                must do so on every rank.

        Raises:
            HybridRLError: the function raised it.
            WorkerError: a rank raised another error, died, or did not answer in time.
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
        """Wait for the answers of all ranks, in order.

        The first failure is raised at once, because other ranks may wait for the failed one.
        """
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


def _serve(rank: int, pipe: Connection) -> None:
    """Main function of a rank process: call the functions it receives, until it is killed."""
    import torch

    torch.set_num_threads(1)
    with on_cpu_alone():
        while True:
            function, rendezvous, args = pipe.recv()
            try:
                pipe.send(("value", function(rank, rendezvous, *args)))
            except HybridRLError as error:
                pipe.send(("refused", error))
            except Exception as error:
                pipe.send(("raised", _place(error)))


def _place(error: Exception) -> str:
    """One line with the error and its innermost line of code."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error}, at {Path(frame.filename).name}:{frame.lineno}"
