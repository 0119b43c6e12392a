"""A real Slurm of one node on loopback, in a folder: munged, slurmctld and slurmd with their own config."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun")

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
JobRequeue=1
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def absent() -> str:
    """Why no Slurm can be started here; empty: it can."""
    missing = [name for name in PROGRAMS if _program(name) is None]
    if missing:
        return f"no {', '.join(missing)} here: Debian's packages slurm-wlm and munge have them"
    return "" if os.getuid() == 0 else "slurmctld of this test runs as root"


@dataclass(frozen=True)
class Slurm:
    environment: dict[str, str]
    """For commands that talk to it."""

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """Start the daemons, wait until the node takes jobs, stop them in the end."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    ports = _free_ports(2)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, folder=folder, ctld_port=ports[0], d_port=ports[1]))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    slurm = Slurm({**os.environ, "SLURM_CONF": str(config)})
    daemons = []
    try:
        for command in (_munged(folder, key), ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            daemons.append(_start(command, slurm.environment, folder))
        _await_node(slurm, folder)
        yield slurm
    finally:
        subprocess.run(["scancel", "--user=root"], env=slurm.environment, timeout=60)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(60)


def _munged(folder: Path, key: Path) -> list[str]:
    places = {"socket": "munge.sock", "pid-file": "munged.pid", "seed-file": "munged.seed"}
    options = [f"--{option}={folder / name}" for option, name in places.items()]
    return ["munged", "--foreground", "--force", f"--key-file={key}", *options]


def _start(command: list[str], environment: dict[str, str], folder: Path) -> subprocess.Popen:
    program = _program(command[0])
    assert program is not None
    with (folder / f"{command[0]}.out").open("w") as out:
        return subprocess.Popen([program, *command[1:]], env=environment, stdout=out, stderr=out, cwd=folder)


def _await_node(slurm: Slurm, folder: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], env=slurm.environment, capture_output=True, text=True
        )
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    logs = "\n".join(path.read_text() for path in sorted(folder.glob("*.log")) + sorted(folder.glob("*.out")))
    raise AssertionError(f"Slurm did not come up:\n{logs[-4000:]}")


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
