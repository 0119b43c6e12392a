"""The loop of docs/python.md on real engines and ranks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOOP = ROOT / "docs" / "examples" / "own_loop.py"


@pytest.mark.slow
def test_a_loop_of_ones_own_learns_the_task_of_the_quickstart(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, LOOP], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    before, after = map(float, re.findall(r"mean_at_1': ([\d.]+)", done.stdout))
    assert before < 0.2 and after > 0.9
    folder = tmp_path / "runs" / "own-loop"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 80 and summary["swap_checksums_ok"]
    assert summary["first_ratio_max_abs_err"] == 0 and summary["heldout_after"] == after
    assert (folder / "report.html").exists() and (folder / "export" / "model.safetensors").exists()
