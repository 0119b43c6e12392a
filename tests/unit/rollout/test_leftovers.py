"""Only what the names say belongs to the engine is removed from shared memory."""

import pytest

from hybridrl.rollout import process
from hybridrl.rollout.sglang import start


@pytest.fixture
def shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_SHARED_MEMORY", tmp_path)
    return tmp_path


OURS = ["torch_12_345_0", "sem.loky-12-abc", "sgl_shm_kv_12_0a0b", "sglang_loads_e1_ff.shm"]
OTHERS = ["torch_123_345_0", "sem.loky-123-abc", "sglang_loads_e2_ff.shm", "sglang_loads__ff.shm", "mine"]


def test_files_of_other_processes_and_engines_stay(shared_memory):
    for name in OURS + OTHERS:
        (shared_memory / name).touch()
    start.remove_leftovers([12], "e1")
    assert sorted(path.name for path in shared_memory.iterdir()) == sorted(OTHERS)


def test_an_engine_that_never_got_a_name_has_no_files_by_name(shared_memory):
    (shared_memory / "sglang_loads__ff.shm").touch()
    start.remove_leftovers([], "")
    assert [path.name for path in shared_memory.iterdir()] == ["sglang_loads__ff.shm"]
