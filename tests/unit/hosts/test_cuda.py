"""What a process asks of its device."""

import subprocess
import sys

import pytest
import torch

from hybridrl.hosts import cuda


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the device, which is not there, is asked for."""
    calls: list[str] = []
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: calls.append(name))
    return calls


def test_cached_memory_is_released_after_what_still_runs(asked, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    cuda.release_cached_memory()
    assert asked == ["synchronize", "empty_cache"]


def test_a_process_without_a_device_has_none_to_release(asked) -> None:
    cuda.release_cached_memory()
    assert asked == []


EXACT = "pinned_max_round_threshold_mb:1"


@pytest.mark.parametrize(
    ("given", "torch_version", "settings"),
    [
        ({}, "2.14.1", EXACT),
        ({}, "2.13.0+cpu", EXACT),
        ({}, "2.11.0+cu130", None),  # would refuse a setting that it does not know
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "2.14.1", f"max_split_size_mb:64,{EXACT}"),
        ({"PYTORCH_ALLOC_CONF": "a:1", "PYTORCH_CUDA_ALLOC_CONF": "b:2"}, "2.14.1", f"a:1,{EXACT}"),
        ({"PYTORCH_ALLOC_CONF": "pinned_max_round_threshold_mb:8"}, "2.14.1", None),
    ],
)
def test_pinned_buffers_of_trainer_ranks_are_not_rounded_up(given, torch_version, settings) -> None:
    ours = cuda.trainer_variables(given, torch_version)
    assert ours.get("PYTORCH_ALLOC_CONF") == settings
    assert ours["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"


@pytest.mark.skipif(torch.version.cuda is None, reason="torch without CUDA reads no settings")
def test_torch_knows_the_setting_of_pinned_buffers() -> None:
    """It refuses settings that it does not know."""
    script = "import torch; torch._C._accelerator_setAllocatorSettings({!r})"
    for setting, known in ((EXACT, True), ("pinned_nonsense:1", False)):
        done = subprocess.run(
            [sys.executable, "-c", script.format(setting)], capture_output=True, timeout=120
        )
        assert (done.returncode == 0) is known, done.stderr
