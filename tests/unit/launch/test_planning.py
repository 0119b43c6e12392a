import subprocess
import sys
from pathlib import Path

import pytest

from hybridrl.config.load import load
from hybridrl.errors import ConfigError, ResourceError
from hybridrl.hosts.machine import Machine
from hybridrl.launch import plan_report, planning
from tests.support.plan_values import write_cluster_config

BARE = Machine(cores=2, memory_bytes=2**34, available_bytes=2**34, shm_bytes=2**33, gpus=())
PLAIN = planning.Request(search=False, gpus=None, mean_response=None)


def planned(folder: Path, *overrides: str, request: planning.Request = PLAIN) -> planning.Plan:
    return planning.plan(load(write_cluster_config(folder), overrides), BARE, request)


def test_a_plan_of_a_cluster_run_needs_no_gpu_and_says_all(tmp_path: Path) -> None:
    found = planned(tmp_path)
    said = "\n".join(f"{heading} {text}" for heading, text in plan_report.lines(found))
    for part in ("BATCH", "8,192 trajectories", "75.5 M tokens", "MEMORY", "80.0 GB", "TIME", "MFU", "OK"):
        assert part in said
    told = plan_report.as_dict(found)
    assert told["fits"] and set(told["time_s"]) == {"a100-40", "a100", "h100", "h200", "b200"}
    assert max(phase["peak"] for phase in told["memory"]) <= told["gpu_bytes"]


def test_too_few_gpus_are_refused_with_both_numbers_and_the_change(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as refused:
        planned(tmp_path, "cluster.nodes=1")
    text = str(refused.value)
    assert "64 GPUs" in text and "80.0 GB" in text and "cheapest change that fits: cluster.nodes = 8" in text
    assert refused.value.exit_code == 2


def test_the_change_that_a_refusal_names_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as refused:
        planned(tmp_path, "actor.offload=none")
    key, _, value = refused.value.fix.removeprefix("cheapest change that fits: ").partition(" = ")
    assert planned(tmp_path, "actor.offload=none", f"{key}={value.split()[0]}").refusal is None


def test_a_search_goes_on_where_the_config_does_not_fit(tmp_path: Path) -> None:
    request = planning.Request(search=True, gpus=64, mean_response=None)
    found = planned(tmp_path, "actor.parallel.pp=8", request=request)
    assert found.proposals and found.setting.num_gpus == 64
    best = found.proposals[0].setting
    overrides = [f"{key}={value}" for key, value in plan_report.keys(best).items()]
    assert planned(tmp_path, "cluster.nodes=8", *overrides).refusal is None


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("algorithm.estimator=nothing", "no 'nothing'"),
        ("cluster={nodes: 1, gpus_per_node: 8}", "which GPUs"),
        ("cluster={nodes: 1, gpu: h100}", "how many"),
    ],
)
def test_a_wrong_config_is_refused_first(tmp_path: Path, override: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        planned(tmp_path, override)


def test_a_plan_imports_no_torch(tmp_path: Path) -> None:
    path = write_cluster_config(tmp_path)
    code = (
        "import sys; from hybridrl.cli import main; "
        f"assert main(['plan', {str(path)!r}]) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
