"""One job at a time in a thread of this process; what it raises is raised again where it is waited for."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job, once the one before has ended.

        Raises: what the one before raised; then this one is not begun.
        """
        self.finish()
        self._job = self._pool.submit(job)

    def finish(self) -> None:
        """Wait for the job.

        Raises: what it raised, once.
        """
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def raise_failure(self) -> None:
        """Raises: what the job has raised so far, once; waits for nothing."""
        if self._job is not None and self._job.done():
            self.finish()
