"""What vLLM's code asks of ours on a GPU only, as far as it runs without one; and our sampler."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from engine_kinds import VLLM_PYTHON, case_of
from engine_values import ROOT

SUPPORT = Path(__file__).parents[1] / "support"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    case_of("vllm")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"}
    line = [str(VLLM_PYTHON), str(SUPPORT / "vllm_without_model.py")]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_samples_by_which_vllm_measures_memory_have_no_requests(found) -> None:
    assert found["measured"] == [5, 1]


def test_the_cache_is_released_at_every_step(found) -> None:
    assert found["calls"] == ["discard", "release_cached_memory", "wake_up"] * 2


def test_a_min_p_leaves_out_what_is_unlikely_for_the_requests_that_ask_for_it(found) -> None:
    assert found["min_p"] == [[2, 3], list(range(11))]
