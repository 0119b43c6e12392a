"""What is away holds no memory, and comes back bit for bit."""

import torch

from hybridrl.hosts import cuda
from hybridrl.trainer.offload import Offload


def test_contents_leave_and_return_through_every_view() -> None:
    whole = torch.randn(12)
    part, before = whole.view(3, 4)[1], whole.clone()
    offload = Offload([whole, part])
    for _ in range(2):
        offload.leave()
        offload.leave()
        assert whole.untyped_storage().nbytes() == 0
        offload.begin_return()
        offload.finish_return()
        assert torch.equal(whole, before) and torch.equal(part, before.view(3, 4)[1])


def test_scratch_returns_with_its_size_only() -> None:
    scratch = torch.ones(8, dtype=torch.float64)
    offload = Offload((), [scratch])
    offload.leave()
    assert scratch.untyped_storage().nbytes() == 0
    offload.begin_return()
    assert scratch.untyped_storage().nbytes() == 64
    scratch.fill_(2.0)


def test_at_home_leaves_things_where_they_were() -> None:
    tensor = torch.arange(5)
    offload = Offload([tensor])
    with offload.at_home():
        assert tensor.tolist() == [0, 1, 2, 3, 4]
    assert tensor.untyped_storage().nbytes() > 0
    offload.leave()
    with offload.at_home():
        assert tensor.tolist() == [0, 1, 2, 3, 4]
        tensor.mul_(2)
    assert tensor.untyped_storage().nbytes() == 0
    with offload.at_home():
        assert tensor.tolist() == [0, 2, 4, 6, 8]


def test_other_processes_get_the_memory_once_it_is_empty(monkeypatch) -> None:
    kept, scratch = torch.ones(4), torch.ones(4)
    sizes = []
    monkeypatch.setattr(
        cuda,
        "release_cached_memory",
        lambda: sizes.append([x.untyped_storage().nbytes() for x in (kept, scratch)]),
    )
    offload = Offload([kept], [scratch])
    offload.leave()
    offload.leave()
    assert sizes == [[0, 0]]


def test_where_nothing_leaves_the_memory_of_the_work_is_given_back_all_the_same(monkeypatch) -> None:
    released = []
    monkeypatch.setattr(cuda, "release_cached_memory", lambda: released.append("memory"))
    offload = Offload(())
    offload.leave()
    with offload.at_home():
        assert released == ["memory"]
    assert released == ["memory"] * 2
