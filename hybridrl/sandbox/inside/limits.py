"""What a program in a box may take."""

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a box. A program that passes one is ended or gets an error, and the result names it."""

    memory_mb: int = 512
    """MiB of address space of each process, and of resident memory of all processes of the box."""

    processes: int = 32
    """Processes and threads at a time."""

    open_files: int = 64
    """Open files of each process."""

    disk_mb: int = 64
    """MiB of all files in /tmp, which is the one place where a program can write."""

    time_s: float = 10.0
    """Seconds of a call, unless the call says otherwise."""

    cpu_s: int = 60
    """Seconds of processor time of each program."""

    output_bytes: int = MIB
    """Bytes that a call may write to stdout and to stderr."""

    @property
    def memory_bytes(self) -> int:
        return self.memory_mb * MIB

    @property
    def disk_bytes(self) -> int:
        return self.disk_mb * MIB
