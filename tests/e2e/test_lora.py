"""A run that trains adapters alone, on the real stack: into the engine, to PEFT, and on from a checkpoint."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_runs import steps

from hybridrl.observe.names import LOGP_GAP

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
ADAPTERS = ("actor.lora={rank: 8}", "actor.optimizer={lr: 5.0e-3}")
FEW = (
    "batch={prompts_per_step: 8, minibatch_prompts: 8}",
    "run.steps=3",
    "run.save_every=2",
    "run.evaluate_every=3",
)

pytestmark = pytest.mark.slow


def hybridrl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hybridrl", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)


def launch(folder: Path, *arguments: str) -> Path:
    done = hybridrl(folder, "launch", str(QUICKSTART), "run.name=lora", *ADAPTERS, *FEW, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "lora"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(tmp_path_factory.mktemp("work"))


def test_the_engine_serves_the_merged_model(run: Path) -> None:
    assert json.loads((run / "summary.json").read_text())["swap_checksums_ok"] is True
    assert all(line[LOGP_GAP] < 2e-5 for line in steps(run)), steps(run)


def test_adapters_are_written_for_peft(run: Path) -> None:
    from safetensors import safe_open

    done = hybridrl(run.parents[1], "export", str(run), "--adapters")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = run / "exports" / "step_000003-adapters"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"]) == ("LORA", 8)
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        ranks = {min(file.get_slice(name).get_shape()) for name in file.keys()}
    assert ranks == {8}


def test_the_merged_export_is_the_trained_model(run: Path) -> None:
    done = hybridrl(run.parents[1], "export", str(run), "--verify", "--to", "merged")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_resumed_run_is_the_uninterrupted_one(run: Path) -> None:
    whole = steps(run)
    shutil.rmtree(run / "checkpoints" / "step_000003")
    shutil.rmtree(run / "export")
    again = steps(launch(run.parents[1], "--resume"))
    assert [line["step"] for line in again][-1] == 3
    for name in ("actor/loss", "actor/grad_norm"):
        assert again[-1][name] == whole[-1][name], name
