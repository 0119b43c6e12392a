"""The files in launchers/ are what their systems take."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from hybridrl.config.rollout import EngineParallel
from hybridrl.config.run_shape import RunShape
from hybridrl.config.training import TrainParallel
from hybridrl.launch.shape import Placement

LAUNCHERS = Path(__file__).parents[3] / "launchers"


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return yaml.safe_load((LAUNCHERS / "kubernetes" / "rayjob.yaml").read_text())


def pods(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_the_rayjob_has_what_its_schema_requires(rayjob: dict[str, Any]) -> None:
    """Required by ray.io/v1: of a RayJob, of a RayClusterSpec, of a WorkerGroupSpec, of a container."""
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob") and rayjob["metadata"]["name"]
    assert rayjob["spec"]["entrypoint"]
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert {"template"} <= cluster["headGroupSpec"].keys()
    for group in cluster["workerGroupSpecs"]:
        assert {"groupName", "template", "minReplicas", "maxReplicas"} <= group.keys()
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for pod in pods(rayjob):
        assert all({"name", "image"} <= container.keys() for container in pod["containers"])


def test_ray_start_takes_texts_and_mounts_have_their_volumes(rayjob: dict[str, Any]) -> None:
    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for pod in pods(rayjob):
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]} <= volumes


def test_a_pod_has_slots_for_the_workers_of_its_gpus(rayjob: dict[str, Any]) -> None:
    gpus = int(pods(rayjob)[0]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    most = max(Placement.of(RunShape(TrainParallel(tp=gpus), gpus // 2, EngineParallel(), 1, 1), 1).per_node)
    assert int(rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"]) >= most


@pytest.mark.parametrize("name", ["slurm/job.sh.in", "ray/submit.sh"])
def test_a_script_is_bash(name: str) -> None:
    done = subprocess.run(["bash", "-n", LAUNCHERS / name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
