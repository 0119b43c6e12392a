"""What a process asks of its device."""

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
