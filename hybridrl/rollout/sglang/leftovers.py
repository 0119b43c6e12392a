"""What an engine's processes leave in shared memory when they are killed, found by names with their pids."""

from collections.abc import Iterable
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")

_OF_PROCESS = ("torch_{pid}_*", "sem.loky-{pid}-*", "sgl_shm_*_{pid}_*")
_OF_ENGINE = ("sglang_loads_{name}_*",)


def remove(pids: Iterable[int], name: str) -> None:
    """Unlink them; whoever has one mapped keeps it until it lets go.

    Args:
        pids: of processes that ended.
        name: what SGLang calls the engine; "" when it did not come that far.
    """
    patterns = [p.format(pid=pid) for pid in pids for p in _OF_PROCESS]
    if name:
        patterns += [p.format(name=name) for p in _OF_ENGINE]
    for pattern in patterns:
        for path in _SHARED_MEMORY.glob(pattern):
            path.unlink(missing_ok=True)
