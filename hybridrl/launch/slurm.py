"""Runs a config as a Slurm job: fills in the script template, writes it to the run folder and submits it.

The folder of the run keeps what was handed over: slurm/job.sh, slurm/config.yaml (the run as it was launched:
a later edit of its file changes nothing), slurm/job_id, and the output of the job.
"""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from hybridrl import __version__
from hybridrl.cluster import slurm
from hybridrl.config.cluster import ClusterConfig, ContainerConfig
from hybridrl.config.load import LoadedConfig
from hybridrl.config.run_folder import RunFolder, path_of
from hybridrl.errors import ConfigError, ResourceError, RunFolderError
from hybridrl.launch.preflight import Say
from hybridrl.launch.shape import Placement, RunFiles
from hybridrl.launch.stop import STOPPED
from hybridrl.wording import counted

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def launch(
    loaded: LoadedConfig, overrides: Sequence[str], say: Say, *, resume: bool, dry_run: bool, wait: bool
) -> int:
    """Write the job of a checked config and hand it to Slurm.

    Args:
        overrides: those with which the config was loaded.
        dry_run: only write the job.
        wait: return when the job is over, however often it was requeued.

    Returns:
        0, or with `wait` the exit code of the job.

    Raises:
        ConfigError: environments are to run on nodes of their own, or nodes may come late.
        RunFolderError: the folder holds another run, or belongs to a job that is not over.
        ResourceError: no node could run such a job, or Slurm refuses it.
    """
    _refuse_environment_nodes(loaded)
    _refuse_late_nodes(loaded)
    files = RunFiles(path_of(loaded.config))
    refuse_owned(files)
    with RunFolder.open_for_resume(loaded) if resume else RunFolder.create(loaded):
        path = write(loaded, overrides, files)
        say("script", f"{path}, config as it is now in {path.with_name('config.yaml')}")
        cluster = loaded.config.cluster
        asked = f"{counted(cluster.nodes, 'node')} x {counted(cluster.gpus_per_node or 0, 'GPU')}"
        if not cluster.gpus_per_node:
            text = "the job asks for no GPUs, and everything would be computed on CPUs"
            say("warning", f"{text}; cluster.gpus_per_node=N asks for N of every node")
        if dry_run:
            say("dry run", f"nothing started; sbatch {path} would ask for {asked}")
            return 0
        job = slurm.submit(path)
        (files.job / "job_id").write_text(f"{job}\n")
    say("submitted", f"job {job}: {asked}; it says what it does in {files.job / f'{job}.out'}")
    return _await_end(job, say) if wait else 0


def _refuse_environment_nodes(loaded: LoadedConfig) -> None:
    environment = loaded.config.environment
    if environment is not None and environment.nodes:
        raise ConfigError(
            f"environment.nodes = {environment.nodes}: a job has nodes of one kind, with engines",
            where=loaded.where("environment.nodes"),
            fix="environment.nodes=0 runs environments beside the engines; or start Ray on both kinds of "
            "nodes, and launch --on ray",
        )


def _refuse_late_nodes(loaded: LoadedConfig) -> None:
    cluster = loaded.config.cluster
    if cluster.nodes_at_start < cluster.nodes:
        raise ConfigError(
            f"cluster.min_nodes = {cluster.min_nodes} of {cluster.nodes}: a job has all of its nodes when it "
            "begins",
            where=loaded.where("cluster.min_nodes"),
            fix="leave out cluster.min_nodes; or start Ray on the nodes of several jobs, and launch --on ray",
        )


def write(loaded: LoadedConfig, overrides: Sequence[str], files: RunFiles) -> Path:
    """Write script and config of the job into the run folder; returns the path of the script."""
    files.job.mkdir(mode=0o700, exist_ok=True)  # config and overrides may hold secrets
    (files.job / "config.yaml").write_bytes(Path(loaded.file).read_bytes())
    path = files.job / "job.sh"
    path.write_text(script(loaded, overrides, files, folder=Path.cwd()), "utf-8")
    return path


def script(loaded: LoadedConfig, overrides: Sequence[str], files: RunFiles, *, folder: Path) -> str:
    """The job script of a config.

    Args:
        files: where slurm/config.yaml is a copy of the config's file.
        folder: working directory of the run; relative paths of the config begin there.
    """
    cfg = loaded.config
    cluster, asked = cfg.cluster, cfg.cluster.slurm
    template = resources.files("hybridrl.launch").joinpath("job.sh.in").read_text("utf-8")
    words = {
        "python": "python" if asked.container else sys.executable,
        "setup": "\n".join(asked.setup),
        "interface": asked.interface or "",
        "slots": str(max(Placement.of_config(cfg).per_node)),
        "gpus": str(cluster.gpus_per_node or 0),
        "start_timeout_s": f"{cluster.start_timeout_s:.0f}",
        "max_requeues": str(asked.max_requeues),
        "stopped": str(STOPPED),
    }
    lists = {
        "run": [str(folder / files.job / "config.yaml"), *overrides],
        "container": srun_options(asked.container, folder),
        "inside": runtime_command(asked.container, folder),
    }
    lines = {
        "directives": "\n".join(
            f"#SBATCH {option}" for option in directives(cluster, cfg.run.name, folder, files.job)
        ),
        "origin": f"hybridrl {__version__} wrote this from {loaded.file}; a launch writes it again.",
    }
    quoted = {name: shlex.quote(word) for name, word in words.items()}
    return render(template, lines | quoted | {name: shlex.join(each) for name, each in lists.items()})


def directives(cluster: ClusterConfig, name: str, folder: Path, output: Path) -> list[str]:
    """Options of sbatch. Those that the config adds come last, and win."""
    asked = cluster.slurm
    options = {
        "--job-name": name,
        "--nodes": str(cluster.nodes),
        "--ntasks-per-node": "1",
        "--gpus-per-node": str(cluster.gpus_per_node) if cluster.gpus_per_node else None,
        "--account": asked.account,
        "--partition": asked.partition,
        "--time": asked.time,
        "--chdir": str(folder),
        "--output": f"{folder / output}/%j.out",
        "--open-mode": "append",
        "--signal": f"B:USR1@{asked.drain_s}",
    }
    given = [f"{option}={shlex.quote(value)}" for option, value in options.items() if value is not None]
    whole = ["--exclusive", "--mem=0"] if asked.exclusive else []
    return [*given, *whole, "--requeue", *asked.sbatch]


def srun_options(container: ContainerConfig | None, folder: Path) -> list[str]:
    """Options that make srun start a container; the folder of the run is mounted at the same path."""
    if container is None or container.runtime != "pyxis":
        return []
    mounts = ",".join(_outside_inside(mount) for mount in (str(folder), *container.mounts))
    return [
        f"--container-image={container.image}",
        f"--container-mounts={mounts}",
        f"--container-workdir={folder}",
    ]


def runtime_command(container: ContainerConfig | None, folder: Path) -> list[str]:
    """Words before a command that run it in a container which srun does not start itself."""
    if container is None or container.runtime != "apptainer":
        return []
    mounts = [_outside_inside(mount) for mount in (str(folder), *container.mounts)]
    return ["apptainer", "exec", "--nv", f"--bind={','.join(mounts)}", f"--pwd={folder}", container.image]


def render(template: str, values: Mapping[str, str]) -> str:
    """The template with every {{name}} replaced; names and values have to match exactly."""
    names = set(_PLACEHOLDER.findall(template))
    assert names == values.keys(), f"template and values differ in {sorted(names ^ values.keys())}"
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)


def _outside_inside(mount: str) -> str:
    return mount if ":" in mount else f"{mount}:{mount}"


def refuse_owned(files: RunFiles) -> None:
    """Refuse a folder whose job is not over. A waiting job holds no lock, so its recorded id is looked up."""
    record = files.job / "job_id"
    if not record.exists():
        return
    job = int(record.read_text())
    found = slurm.state(job)
    if found and not found.finished:
        raise RunFolderError(
            f"{files.folder} belongs to job {job}, which is {found.name}",
            where=str(record),
            fix=f"scancel {job} ends it, run.name=... starts another run",
        )


def _await_end(job: int, say: Say) -> int:
    found = slurm.wait(job)
    if found is None:
        raise ResourceError(f"Slurm no longer knows what became of job {job}", fix="look at its output")
    say("job", f"{job} is {found.name}, exit code {found.exit_code}")
    return found.exit_code or int(found.name != "COMPLETED")
