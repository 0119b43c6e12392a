"""What a process holds: memory, open files, threads, and processes that it started."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Usage:
    memory_bytes: int
    """Resident memory."""

    files: int
    threads: int
    children: int


def usage_of(pid: int) -> Usage | None:
    """None: the process is gone, or the system has no /proc."""
    process = Path(f"/proc/{pid}")
    try:
        lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        files = len(list((process / "fd").iterdir()))
        children = len((process / f"task/{pid}/children").read_text().split())
    except OSError:
        return None
    return Usage(int(lines["VmRSS"].split()[0]) * 1024, files, int(lines["Threads"]), children)
