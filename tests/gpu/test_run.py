"""A whole run on GPUs: trainer and engines take turns on them, weights go through CUDA IPC and NCCL.

Needs what requirements/gpu.txt lists (Transformer Engine, sgl-kernel, torch-memory-saver) and CUDA devices.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hybridrl.observe.names import LOGP_GAP

NUM_GPUS = torch.cuda.device_count()
MISSING = [
    name
    for name in ("transformer_engine", "sgl_kernel", "torch_memory_saver")
    if importlib.util.find_spec(name) is None
]
CONFIG = Path(__file__).parents[2] / "configs" / "smollm2_reasoning_gym.yaml"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(NUM_GPUS == 0, reason="needs a CUDA device"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]


@pytest.mark.parametrize(
    "shape",
    [
        ("actor.parallel={dp: 1}", "cluster.gpus_per_node=1"),
        pytest.param(
            ("actor.parallel={pp: 2}", "cluster.gpus_per_node=2"),  # each engine wants both stages
            marks=pytest.mark.skipif(NUM_GPUS < 2, reason="needs 2 CUDA devices"),
        ),
        pytest.param(
            (
                "actor.parallel={dp: 2}",
                "rollout.parallel.tp=1",
                "actor.offload=all",
                "cluster.gpus_per_node=2",
            ),
            marks=pytest.mark.skipif(NUM_GPUS < 2, reason="needs 2 CUDA devices"),
        ),
    ],
    ids=["one", "pp2", "dp2"],
)
def test_engines_answer_with_the_trainers_weights(tmp_path: Path, shape: tuple[str, ...]) -> None:
    few = ("run.steps=4", "run.name=gpu", "rollout.memory_fraction=0.3")
    command = [sys.executable, "-m", "hybridrl", "launch", str(CONFIG), *few, *shape]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "gpu"
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if line["kind"] == "step"]
    assert json.loads((run / "summary.json").read_text())["swap_checksums_ok"] is True
    assert len(steps) == 4
    for step in steps:
        assert step[LOGP_GAP] < 0.2, "bf16 of two programs, not other weights"
        assert step["training/rollout_probs_diff_mean"] < 0.02
