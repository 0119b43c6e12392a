"""The seccomp filter of a box: a program in classic BPF, as the kernel and `bwrap --seccomp` take it.

A refused call returns EPERM (a socket EACCES), so a program sees an ordinary error and can say so. Calls of
another architecture's table (32-bit, x32) end the process: they would pass the numbers by.
"""

import errno
import platform
import struct
from collections.abc import Iterable

from hybridrl.sandbox.inside.system_calls import NEWEST, NUMBERS, REFUSED, REFUSED_BESIDE_OTHERS

MACHINES = ("x86_64", "aarch64")
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

_LOAD, _EQUAL, _NOT_BELOW, _ANY_BIT, _RETURN, _AND = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

_NEW_NAMESPACES = 0x7E020080
"""CLONE_NEW*: time, mount, cgroup, uts, ipc, user, pid, net."""

_CLONE_THREAD = 0x00010000
_AF_UNIX, _AF_INET = 1, 2
_SOCK_STREAM, _SOCKET_KIND, _IPPROTO_TCP = 1, 0xF, 6
_PR_SET_PDEATHSIG = 1
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_SIGNAL_OWNERS = (0x8901, 0x8902)  # FIOSETOWN, SIOCSPGRP
_F_SETOWN = (8, 15)

Code = list[tuple[int, int, int, int]]


def box_filter(*, tcp: bool = False) -> bytes:
    """The filter of every process of a box; sockets are Unix sockets.

    Args:
        tcp: sockets of TCP over IPv4 too, for a box with a network of its own.
    """
    return _Filter().refuse(REFUSED).common(tcp=tcp).finish()


def lone_process_filter(pid: int) -> bytes:
    """The filter of a program that shares the machine's processes and the user's files with others: it starts
    no process, has no socket but pairs, and signals and limits itself alone.

    Args:
        pid: of the process, which applies the filter to itself.
    """
    return _Filter().refuse(REFUSED + REFUSED_BESIDE_OTHERS).common().alone(pid).finish()


class _Filter:
    def __init__(self) -> None:
        self._machine = platform.machine()
        self._code: Code = [
            (_LOAD, 0, 0, _ARCH_AT),
            (_EQUAL, 1, 0, _AUDIT_ARCH[self._machine]),
            (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, _NUMBER_AT),
        ]
        if self._machine == "x86_64":
            self._code += [(_NOT_BELOW, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL)]
        self._code += [(_NOT_BELOW, 0, 1, NEWEST + 1), _refuse(errno.ENOSYS)]

    def refuse(self, names: Iterable[str], error: int = errno.EPERM) -> "_Filter":
        for name in names:
            self._on(name, [_refuse(error)])
        return self

    def common(self, *, tcp: bool = False) -> "_Filter":
        """Rules about arguments that hold in every box. glibc tries clone without clone3."""
        self.refuse(["clone3"], errno.ENOSYS)
        self._on("clone", [_argument(0), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), _refuse(errno.EPERM)])
        self._on("socket", _unix_or_tcp() if tcp else _refuse_unless(0, (_AF_UNIX,), errno.EACCES))
        self._on("ioctl", _refuse_if(1, _TERMINAL_INPUT))
        return self

    def alone(self, pid: int) -> "_Filter":
        self._on("clone", [_argument(0), (_ANY_BIT, 1, 0, _CLONE_THREAD), _refuse(errno.EPERM)])
        self.refuse(["socket"], errno.EACCES)
        self._on("prctl", _refuse_if(0, (_PR_SET_PDEATHSIG,)))
        self._on("ioctl", _refuse_if(1, _SIGNAL_OWNERS))
        self._on("fcntl", _refuse_if(1, _F_SETOWN))
        self._on("sched_setaffinity", _refuse_unless(0, (0, pid)))
        self._on("prlimit64", _refuse_unless(0, (0, pid)))
        for name in ("kill", "tgkill"):
            self._on(name, _refuse_unless(0, (pid,)))
        return self

    def finish(self) -> bytes:
        code = [*self._code, (_RETURN, 0, 0, _ALLOW)]
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)

    def _on(self, name: str, body: Code) -> None:
        """Add instructions for a call; those that come to their end go on with the next rule."""
        number = NUMBERS[name][MACHINES.index(self._machine)]
        if number is not None:
            body = [*body, (_LOAD, 0, 0, _NUMBER_AT)]
            self._code += [(_EQUAL, 0, len(body), number), *body]


def _refuse(error: int) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, _ERRNO | error)


def _argument(index: int) -> tuple[int, int, int, int]:
    """Loads the low half of an argument: flags, families and process ids have 32 bits."""
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)


def _refuse_if(index: int, values: Iterable[int]) -> Code:
    """Refuse the call if the argument is one of the values."""
    body: Code = [_argument(index)]
    for value in values:
        body += [(_EQUAL, 0, 1, value), _refuse(errno.EPERM)]
    return body


def _refuse_unless(index: int, values: tuple[int, ...], error: int = errno.EPERM) -> Code:
    """Refuse the call unless the argument is one of the values."""
    tests: Code = [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_argument(index), *tests, _refuse(error)]


def _unix_or_tcp() -> Code:
    """Refuse a socket of another kind than Unix, and TCP over IPv4."""
    of_tcp: Code = [
        _argument(1),
        (_AND, 0, 0, _SOCKET_KIND),  # the rest are flags
        (_EQUAL, 1, 0, _SOCK_STREAM),
        _refuse(errno.EACCES),
        *_refuse_unless(2, (0, _IPPROTO_TCP), errno.EACCES),
    ]
    of_unix = len(of_tcp) + 2
    return [
        _argument(0),
        (_EQUAL, of_unix, 0, _AF_UNIX),
        (_EQUAL, 1, 0, _AF_INET),
        _refuse(errno.EACCES),
        *of_tcp,
    ]
