"""A Ray that starts slowly is waited for; one that does not start says why."""

import time
from pathlib import Path

import pytest
import ray
from ray._private import services

from hybridrl.cluster.ray_local import local_ray, patient
from hybridrl.errors import DeadlineError

NODE = {"node_id": "n"}


def _appears_after(monkeypatch: pytest.MonkeyPatch, times: int) -> list[str]:
    """Ray's node is there when it has been asked for so many times; the questions."""
    asked = []

    def get_node(address: str, node_id: str) -> dict[str, str]:
        asked.append(node_id)
        if len(asked) <= times:
            raise RuntimeError("no node")
        return NODE

    monkeypatch.setattr(services, "get_node", get_node)
    return asked


def test_a_node_that_starts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, before = _appears_after(monkeypatch, 3), services.get_node
    with patient(lambda: True):
        assert services.get_node("address", "n") == NODE
    assert asked == ["n"] * 4 and services.get_node is before


def test_a_node_whose_process_is_gone_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _appears_after(monkeypatch, 3)
    with patient(lambda: False), pytest.raises(RuntimeError, match="no node"):
        services.get_node("address", "n")
    assert asked == ["n"]


def test_the_wait_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    _appears_after(monkeypatch, 10**9)
    monkeypatch.setattr("hybridrl.cluster.ray_local.START_S", 0.3)
    began = time.monotonic()
    with patient(lambda: True), pytest.raises(RuntimeError, match="no node"):
        services.get_node("address", "n")
    assert time.monotonic() - began >= 0.3


def test_the_error_has_the_ends_of_rays_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []

    def init(*, _temp_dir: str, **settings: object) -> None:
        folders.append(Path(_temp_dir))
        logs = folders[0] / "session_latest" / "logs"
        logs.mkdir(parents=True)
        (logs / "raylet.out").write_text("".join(f"line {i}\n" for i in range(9)) + "no port is free\n")
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(DeadlineError, match="raylet.out: no port is free") as caught,
        local_ray(num_workers=1),
    ):
        pass
    assert "line 3" not in str(caught.value) and not folders[0].exists()
