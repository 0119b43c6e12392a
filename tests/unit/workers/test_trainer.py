"""What a trainer rank does around the work of its policy."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from hybridrl.hosts import cuda
from hybridrl.reshard.topology import Topology
from hybridrl.workers import swap_rank
from hybridrl.workers.swap_rank import SwapRank
from hybridrl.workers.trainer import TrainerWorker


def worker(policy):
    """A trainer rank with a policy, in this process."""
    made = object.__new__(TrainerWorker.__ray_metadata__.modified_class)
    made._policy = policy
    return made


def test_what_writing_weights_took_is_given_back_before_engines_fill_their_caches(monkeypatch) -> None:
    done = []
    rank = worker(SimpleNamespace(tensors=lambda: {"weight": 1.0}))
    writer = SimpleNamespace(write=lambda tensors, whole: done.append((tensors, whole)) or "written")
    rank._swap = SwapRank(None, torch.device("cpu"), 1.0)
    rank._swap._writers = [None, writer]
    monkeypatch.setattr(cuda, "release_cached_memory", lambda: done.append("release"))
    assert rank.write_weights(1, True) == "written"
    assert done == [({"weight": 1.0}, True), "release"]


def test_so_is_what_writing_a_bucket_took(monkeypatch) -> None:
    done = []
    rank = worker(SimpleNamespace(tensors=lambda: {"weight": torch.ones(1)}))
    rank._buckets = SimpleNamespace(
        sources=lambda index: ["weight", "another rank's"],
        write=lambda index, tensors: done.append([*tensors]) or 4,
    )
    monkeypatch.setattr(cuda, "release_cached_memory", lambda: done.append("release"))
    assert rank.write_bucket(0) == 4
    assert done == [["weight"], "release"]


@pytest.mark.parametrize(("lost", "group"), [((), "all ranks"), ((1,), None)])
def test_ranks_make_a_group_to_send_weights_unless_one_is_lost(lost, group, monkeypatch) -> None:
    made = []
    monkeypatch.setattr(dist, "new_group", lambda **options: "all ranks")
    monkeypatch.setattr(
        swap_rank, "SwapWriter", lambda *args, **options: SimpleNamespace(plan_hash=str(made.append(options)))
    )
    rank = worker(SimpleNamespace(layout="layout", fixed={"embedding"}))
    rank._setup = SimpleNamespace(rank=0)
    rank._swap = SwapRank("layout", torch.device("cuda"), 1.0)
    rank.connect(["first", "second"], frozenset(lost), Topology.colocated(2, [1, 1], 8), [(0,), (1,)])
    assert [one["topology"].targets for one in made] == [((0,),), ((1,),)]
    for planned in made:
        assert (planned["group"], planned["lost"], planned["reach"]) == (group, set(lost), "device")
        assert planned["fixed"] == {"embedding"}
