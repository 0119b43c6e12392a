"""What a process does to itself to give up rights: user, capabilities, files (Landlock), calls (seccomp).

Source: Linux, Documentation/userspace-api/landlock.rst and seccomp_filter.rst.
"""

import ctypes
import os
import resource
import signal
from collections.abc import Sequence

from hybridrl.sandbox.inside.limits import Limits

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL = 38, 22, 47, 4
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION, _RULE_PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FILES_OF_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_FILES = (1 << 16) - 1
_NETWORK = 0b11
_SCOPES = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("access", ctypes.c_uint64), ("parent", ctypes.c_int32)]


class _Instructions(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def landlock_version() -> int:
    """The ABI version of this kernel's Landlock; 0: there is none, or it is switched off."""
    return max(_libc.syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION), 0)


def become(user: int) -> None:
    """Take another user and group id. It needs CAP_SETUID and CAP_SETGID."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def drop_bounding_set() -> None:
    """No program that this process starts can get a capability. Without CAP_SETPCAP it does nothing."""
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def drop_capabilities() -> None:
    """Give up all capabilities."""
    _libc.prctl(_PR_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    head, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    _check(_libc.capset(head, sets), "capset")


def seal() -> None:
    """No new privileges by any program, no core dump, and memory that others of this user cannot read."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    set_dumpable(False)


def set_dumpable(value: bool) -> None:
    """Whether other processes of this user may look into this one."""
    _libc.prctl(_PR_SET_DUMPABLE, int(value), 0, 0, 0)


def die_with_parent() -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")


def apply_filter(code: bytes) -> None:
    """Install a seccomp filter (filter.py) for this process and all that it starts."""
    program = _Instructions(len(code) // 8, code)
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0), "seccomp")


def apply_landlock(read: Sequence[str], write: Sequence[str], devices: Sequence[str]) -> None:
    """From now on this process and all that it starts may read and execute what is below some folders, do all
    below others, read and write some files, and touch no other file.

    Raises:
        OSError: the kernel refuses it.
    """
    version = landlock_version()
    files = _FILES_OF_ABI.get(version, _FILES)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _Ruleset(files, _NETWORK, _SCOPES)
    ruleset = _check(_libc.syscall(_CREATE_RULESET, ctypes.byref(rules), size, 0), "landlock")
    readable = _EXECUTE | _READ_FILE | _READ_DIR
    for paths, access in ((read, readable), (write, files), (devices, _READ_FILE | _WRITE_FILE)):
        for path in filter(os.path.exists, paths):
            allowed = access if os.path.isdir(path) else access & (_EXECUTE | _READ_FILE | _WRITE_FILE)
            _allow(ruleset, path, allowed)
    _check(_libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock")
    os.close(ruleset)


def set_limits(limits: Limits, *, other_processes: int) -> None:
    """Limit this process and all that it starts.

    Args:
        other_processes: processes and threads of this user, as the kernel counts them, that are not the
            program's.
    """
    memory, files = limits.memory_bytes, limits.open_files
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NPROC, limits.processes + other_processes),
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_FSIZE, limits.disk_bytes),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def limit_cpu(seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def _allow(ruleset: int, path: str, access: int) -> None:
    parent = os.open(path, os.O_PATH)
    rule = _PathBeneath(access, parent)
    code = _libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    os.close(parent)
    _check(code, f"landlock on {path}")


def _check(code: int, what: str) -> int:
    if code < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return code
