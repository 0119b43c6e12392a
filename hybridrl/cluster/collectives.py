"""Who is missing when ranks fail in a collective.

A rank that waits in a collective for a rank that is gone, hangs or never joins gets an error of gloo, NCCL or
the store, which names neither. The outcomes of the other ranks' calls say who it is.
"""

from collections.abc import Collection, Mapping

from hybridrl.errors import DeadlineError, HybridRLError, WorkerError

GRACE_S = 5.0
"""How long the other ranks have to fail too, so that the error of the one that began it is known."""

_SIGNS = ("gloo/transport", "gloo/rendezvous", "c10d", "Connection closed by peer", "NCCL")
_CLASSES = ("DistError", "DistBackendError", "DistNetworkError", "DistStoreError")
_LATE = ("timed out", "timeout")


def is_of_collective(error: BaseException) -> bool:
    """Whether an error says that a collective of torch.distributed broke, and not why."""
    if isinstance(error, HybridRLError):
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {*_CLASSES}) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


def named(
    group: str,
    method: str,
    broken: Mapping[int, BaseException],
    returned: Collection[int],
    silent: Collection[int],
) -> HybridRLError:
    """The error of a call in which a collective broke.

    Args:
        group: name of the ranks.
        broken: rank -> its error.
        returned: ranks whose call returned, so that they never joined the collective.
        silent: ranks that have not answered.
    """
    waited = {rank: error for rank, error in broken.items() if _is_late(error)} or broken
    late = broken.keys() - waited.keys()  # whose connections ended when the others gave up
    said = _first_line(next(iter(waited.values())))
    absent = " and ".join(
        f"rank {sorted(ranks)}, which {why}"
        for ranks, why in (
            (silent, "does not answer"),
            (returned, f"returned from {method!r} without joining it"),
            (late, "came after the deadline"),
        )
        if ranks
    )
    waiting = f"{group} rank {sorted(waited)}"
    what = (
        f"{waiting} waited in a collective during {method!r} for {absent}: {said}"
        if absent
        else f"a collective of {waiting} broke during {method!r}: {said}"
    )
    if _is_late(next(iter(waited.values()))):
        return DeadlineError(what, fix="raise cluster.deadlines.collective_s if the work is that long")
    return WorkerError(what)


def _is_late(error: BaseException) -> bool:
    return any(sign in _first_line(error).lower() for sign in _LATE)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
