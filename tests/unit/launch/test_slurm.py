"""The job script: what it asks Slurm for, and what it does with Ray, the driver and signals.

The script itself runs here, with stand-ins for Slurm's commands and for the programs that it starts.
"""

import os
import shlex
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridrl.cluster.slurm import parse_state
from hybridrl.config.cluster import ClusterConfig, ContainerConfig
from hybridrl.config.load import LoadedConfig, load
from hybridrl.config.rollout import EngineParallel
from hybridrl.config.run_shape import RunShape
from hybridrl.config.training import TrainParallel
from hybridrl.errors import ConfigErrors
from hybridrl.launch.shape import Placement, RunFiles
from hybridrl.launch.slurm import directives, render, runtime_command, script, srun_options
from hybridrl.launch.stop import STOPPED

CONFIG = """\
model: model
data: {train: prompts.jsonl}
reward: exact_match
actor: {parallel: {tp: 2}}
run: {name: "a b"}
"""


def loaded(folder: Path, *overrides: str) -> LoadedConfig:
    (folder / "my.yaml").write_text(CONFIG)
    return load(folder / "my.yaml", overrides)


def written(folder: Path, *overrides: str) -> str:
    return script(loaded(folder, *overrides), overrides, RunFiles(Path("runs/a b")), folder=folder)


def options(text: str) -> dict[str, str]:
    """What sbatch reads: it takes quotes as a shell does."""
    lines = [shlex.split(line)[1] for line in text.splitlines() if line.startswith("#SBATCH ")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_what_the_cluster_block_says_is_asked_for(tmp_path: Path) -> None:
    found = options(
        written(
            tmp_path,
            "cluster={nodes: 16, gpus_per_node: 8}",
            "cluster.slurm={account: lab, partition: h100, time: 1-12:00:00, drain_s: 900}",
            "cluster.slurm.sbatch=[--qos=high]",
        )
    )
    assert found["--nodes"] == "16" and found["--gpus-per-node"] == "8" and found["--ntasks-per-node"] == "1"
    assert (found["--account"], found["--partition"], found["--time"]) == ("lab", "h100", "1-12:00:00")
    assert found["--signal"] == "B:USR1@900" and found["--qos"] == "high"
    assert {"--requeue", "--exclusive"} <= found.keys() and found["--open-mode"] == "append"
    assert found["--job-name"] == "a b" and found["--output"] == f"{tmp_path}/runs/a b/slurm/%j.out"


def test_what_is_not_set_is_not_asked_for() -> None:
    cluster = ClusterConfig.model_validate({"slurm": {"exclusive": False}})
    names = {option.partition("=")[0] for option in directives(cluster, "a", Path("/work"), Path("runs/a"))}
    assert not names & {"--account", "--partition", "--time", "--gpus-per-node", "--exclusive", "--mem"}


@pytest.mark.parametrize("time_limit", ["tomorrow", "24h", "1:2:3:4", "-5"])
def test_a_time_that_slurm_does_not_know_is_refused(tmp_path: Path, time_limit: str) -> None:
    with pytest.raises(ConfigErrors, match=r"cluster\.slurm\.time"):
        loaded(tmp_path, f"cluster.slurm.time='{time_limit}'")


def test_a_container_wraps_every_command_and_sees_the_folder_of_the_run() -> None:
    pyxis = ContainerConfig(runtime="pyxis", image="nvcr.io#nvidia/x:1", mounts=("/data", "/a:/b"))
    assert srun_options(pyxis, Path("/work")) == [
        "--container-image=nvcr.io#nvidia/x:1",
        "--container-mounts=/work:/work,/data:/data,/a:/b",
        "--container-workdir=/work",
    ]
    assert runtime_command(pyxis, Path("/work")) == []
    apptainer = ContainerConfig(runtime="apptainer", image="/x.sif", mounts=("/data",))
    command = runtime_command(apptainer, Path("/work"))
    assert command[:3] == ["apptainer", "exec", "--nv"] and command[-1] == "/x.sif"
    assert "--bind=/work:/work,/data:/data" in command and "--pwd=/work" in command
    assert srun_options(apptainer, Path("/work")) == srun_options(None, Path("/work")) == []


def test_a_template_and_its_values_name_the_same_places() -> None:
    assert render("a {{x}} $y ${z}", {"x": "1"}) == "a 1 $y ${z}"
    for values in ({}, {"x": "1", "y": "2"}):
        with pytest.raises(AssertionError, match="differ"):
            render("{{x}}", values)


@given(tp=st.integers(1, 8), dp=st.integers(1, 8), engines=st.integers(1, 8), nodes=st.integers(1, 8))
def test_every_worker_has_a_node_and_neighbours_share_one(tp: int, dp: int, engines: int, nodes: int) -> None:
    shape = RunShape(TrainParallel(tp=tp, dp=dp), engines, EngineParallel(), 1, 1)
    placement = Placement.of(shape, nodes)
    assert len(placement.trainer) == tp * dp and len(placement.engine) == engines
    for kind in (placement.trainer, placement.engine):
        assert list(kind) == sorted(kind) and set(kind) <= set(range(nodes))
        sizes = [kind.count(node) for node in range(nodes)]
        assert max(sizes) - min(sizes) <= 1
    assert sum(placement.per_node) == tp * dp + engines + 1


@given(ranks=st.integers(1, 12), engines=st.integers(1, 6), size=st.integers(1, 4), nodes=st.integers(1, 6))
def test_a_topology_has_every_worker_on_the_node_of_its_seat(
    ranks: int, engines: int, size: int, nodes: int
) -> None:
    shape = RunShape(TrainParallel(tp=ranks, dp=1), engines, EngineParallel(), 1, 1)
    placement = Placement.of(shape, min(nodes, ranks))
    topology = placement.topology(size)
    if topology is None:
        assert {*placement.trainer, *placement.engine} == {0}
        return
    assert len(set(topology.source)) == ranks
    assert [topology.node(device) for device in topology.source] == list(placement.trainer)
    for devices, node in zip(topology.targets, placement.engine, strict=True):
        assert len(devices) == size
        assert all(topology.node(d) == node and d in topology.rank_on for d in devices)


@pytest.mark.parametrize(
    ("line", "name", "code"),
    [
        ("JobId=1 JobState=COMPLETED Reason=None ExitCode=0:0 DerivedExitCode=0:0", "COMPLETED", 0),
        ("JobId=1 JobState=FAILED ExitCode=2:0", "FAILED", 2),
        ("JobId=1 JobState=CANCELLED ExitCode=0:15", "CANCELLED", 143),
        ("JobId=1 JobState=RUNNING ExitCode=0:0", "RUNNING", 0),
    ],
)
def test_the_state_of_a_job_is_read(line: str, name: str, code: int) -> None:
    found = parse_state(line)
    assert (found.name, found.exit_code, found.finished) == (name, code, name != "RUNNING")


SRUN = """\
#!/bin/bash
# The command on the first of the nodes asked for.
while [[ $1 == --* ]]; do
  [[ $1 == --nodelist=* ]] && nodes=${1#*=}
  shift
done
export SLURMD_NODENAME=${nodes%%,*}
exec "$@"
"""

SCONTROL = """\
#!/bin/bash
if [ "$1" = show ]; then tr , '\\n' <<<"$3"; else echo "$@" >>"$JOURNAL"; fi
"""

PYTHON = """\
#!/usr/bin/env python3
import os, signal, socket, sys, time

def note(*words):
    with open(os.environ["JOURNAL"], "a") as file:
        print(*words, file=file)

def asked(*_):
    note("driver asked to stop")
    sys.exit(75)

if "ray.scripts.scripts" in sys.argv:
    said = [word for word in sys.argv if "--num-" in word or "--node-name" in word]
    note("ray on", os.environ["SLURMD_NODENAME"], *said)
    if "--head" in sys.argv:
        port = next(int(word.partition("=")[2]) for word in sys.argv if word.startswith("--port="))
        server = socket.create_server((os.environ["HEAD"], port))
    signal.pause()
signal.signal(signal.SIGUSR1, asked)
note("driver", *sys.argv[3:4], *sys.argv[5:])
note("joins", os.environ["RAY_ADDRESS"], "of", os.environ["HYBRIDRL_NODES"])
time.sleep(float(os.environ.get("DRIVER_S", 0)))
sys.exit(int(os.environ.get("DRIVER_CODE", 0)))
"""


class Job:
    """The script of a config, run as Slurm would, and the journal of what its programs did."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.journal = folder / "journal"
        tools = folder / "tools"
        tools.mkdir()
        ip = "#!/bin/bash\necho '2: eth0 inet 127.0.0.1/8 scope global eth0'\n"
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON, "ip": ip}.items():
            (tools / name).write_text(textwrap.dedent(text))
            (tools / name).chmod(0o755)
        self.script = folder / "job.sh"
        text = written(folder, *overrides)
        self.script.write_text(text.replace(f"python={os.sys.executable}", f"python={tools / 'python'}"))
        self.environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "JOURNAL": str(self.journal),
            "HEAD": "127.0.0.1",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "n1",
            "SLURM_CPUS_ON_NODE": "2",
        }

    def start(self, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(self.script)],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, **environment: str) -> tuple[int, list[str], str]:
        """Exit code, journal, output."""
        process = self.start(**environment)
        out, _ = process.communicate(timeout=60)
        return process.returncode, self.journal.read_text().splitlines(), out


def test_the_driver_joins_the_ray_that_the_job_started(tmp_path: Path) -> None:
    job = Job(tmp_path, "run.seed=3", "reward={name: exact_match}")
    code, journal, out = job.run()
    port = 20000 + os.getpid() % 10000
    assert code == 0, out
    assert journal == [
        "ray on n1 --num-cpus=4 --num-gpus=0 --node-name=n1",
        "driver launch run.seed=3 reward={name: exact_match} --on ray --continue",
        f"joins 127.0.0.1:{port} of n1",
    ]


def test_every_further_node_gets_a_ray_of_its_own_name(tmp_path: Path) -> None:
    job = Job(tmp_path, "cluster={nodes: 2, gpus_per_node: 8}", "rollout.num_engines=2")
    code, journal, out = job.run(SLURM_JOB_NODELIST="n1,n2", DRIVER_S="1")
    assert code == 0, out
    assert {line for line in journal if line.startswith("ray")} == {
        "ray on n1 --num-cpus=10 --num-gpus=8 --node-name=n1",
        "ray on n2 --num-cpus=10 --num-gpus=8 --node-name=n2",
    }
    assert any(line.endswith("of n1 n2") for line in journal)


@pytest.mark.parametrize(
    ("driver", "restarts", "requeued"), [(STOPPED, 0, True), (STOPPED, 50, False), (2, 0, False)]
)
def test_only_a_run_that_stopped_to_go_on_is_requeued(
    tmp_path: Path, driver: int, restarts: int, requeued: bool
) -> None:
    job = Job(tmp_path)
    code, journal, out = job.run(DRIVER_CODE=str(driver), SLURM_RESTART_COUNT=str(restarts))
    assert code == driver, out
    assert (f"requeue {os.getpid()}" in journal) == requeued


def test_the_signal_of_slurm_reaches_the_driver_and_the_job_waits_for_it(tmp_path: Path) -> None:
    job = Job(tmp_path)
    process = job.start(DRIVER_S="30")
    deadline = time.monotonic() + 30
    while not job.journal.exists() or "driver" not in job.journal.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == STOPPED, out
    assert job.journal.read_text().splitlines()[-2:] == ["driver asked to stop", f"requeue {os.getpid()}"]


def test_a_ray_that_does_not_start_is_said(tmp_path: Path) -> None:
    job = Job(tmp_path)
    code, _, out = job.run(HEAD="256.0.0.1")
    assert code == 3 and "error: Ray did not start on n1" in out
