"""What a trainer rank does around the work of its policy."""

from types import SimpleNamespace

from hybridrl.hosts import cuda
from hybridrl.workers.trainer import TrainerWorker


def test_what_writing_weights_took_is_given_back_before_engines_fill_their_caches(monkeypatch) -> None:
    done = []
    rank = object.__new__(TrainerWorker.__ray_metadata__.modified_class)
    rank._policy = SimpleNamespace(tensors=lambda: {"weight": 1.0})
    rank._writer = SimpleNamespace(write=lambda tensors: done.append(f"write {tensors}") or "written")
    monkeypatch.setattr(cuda, "release_cached_memory", lambda: done.append("release"))
    assert rank.write_weights() == "written"
    assert done == ["write {'weight': 1.0}", "release"]
