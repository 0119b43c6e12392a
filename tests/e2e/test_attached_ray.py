"""A Ray that runs already: its workers, its nodes, its room."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray_nodes import RayNode

from hybridrl.cluster.late_nodes import awaited
from hybridrl.cluster.nodes import ExpectedNodes
from hybridrl.cluster.placement import reserved
from hybridrl.cluster.ray_attached import attached_ray
from hybridrl.errors import DeadlineError, ResourceError


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray of one node, n1, with 3 slots, that was started in another folder and listens on loopback."""
    head, where = RayNode.head(tmp_path_factory.mktemp("ray"), "n1", num_cpus=3)
    yield where
    head.end()


def test_workers_of_an_attached_ray_run_in_the_folder_of_the_driver(
    address: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        attached_ray(address, ExpectedNodes(1, 0, ("n1",)), timeout_s=30) as logs,
        reserved([2], timeout_s=30) as place,
    ):
        assert list(logs.glob("raylet*"))
        where = ray.remote(lambda: os.getcwd()).options(**place(0))
        assert ray.get(where.remote(), timeout=60) == str(tmp_path)


def test_what_an_attached_ray_lacks_is_said_before_a_worker_starts(address: str) -> None:
    with (
        pytest.raises(DeadlineError, match="n2 did not join Ray; n1 has 0 of 4 GPUs"),
        attached_ray(address, ExpectedNodes(2, 4, ("n1", "n2")), timeout_s=0.1),
    ):
        pass
    with (
        attached_ray(address, ExpectedNodes(1, 0), timeout_s=30),
        pytest.raises(
            ResourceError, match=r"needs \[4\] of Ray's CPUs, one per worker, on 1 nodes; 3 are free"
        ),
        reserved([4], timeout_s=0.5),
    ):
        pass


@pytest.mark.slow
def test_a_node_that_comes_later_is_another_one_and_gets_workers(address: str, tmp_path: Path) -> None:
    """The first node has room for it, and is not taken."""
    node_of = ray.remote(lambda: ray.get_runtime_context().get_node_id())
    with (
        attached_ray(address, ExpectedNodes(1, 0), timeout_s=30),
        reserved([1], timeout_s=30) as place,
        awaited({1: 2}, 0, apart_from=place.node_ids, timeout_s=60) as late,
    ):
        assert late.absent == [1]
        member = RayNode.member(tmp_path, "n2", 2, address)
        try:
            asyncio.run(asyncio.wait_for(late.come(1), 60))
            assert late.absent == [] and late.interface(1) == "lo"
            here = [
                ray.get(node_of.options(**options).remote(), timeout=60)
                for options in (place(0), late.place(1))
            ]
            assert here[0] != here[1] and here[0] in place.node_ids
            with awaited({1: 1}, 0, apart_from=[here[1]], timeout_s=60) as other:
                assert other.absent == [], "a node that is there at the start is seen"
        finally:
            member.end()
