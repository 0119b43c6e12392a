"""Which machines did not join, or came without their GPUs, by name."""

from hybridrl.cluster.nodes import ExpectedNodes, joined, lacking


def test_nodes_that_are_there_with_their_gpus_lack_nothing() -> None:
    assert lacking(ExpectedNodes(2, 8, ("n1", "n2")), {"n2": 8, "n1": 8, "n3": 0}) == []
    assert lacking(ExpectedNodes(2, 0), {"a": 0, "b": 4}) == []


def test_every_missing_node_is_named() -> None:
    assert lacking(ExpectedNodes(3, 8, ("n1", "n2", "n3")), {"n2": 8}) == ["n1, n3 did not join Ray"]
    assert lacking(ExpectedNodes(3, 8), {"n2": 8}) == ["Ray has 1 of 3 nodes: n2"]


def test_further_nodes_need_no_gpus_but_have_to_be_there() -> None:
    wanted = ExpectedNodes(2, 8, others=1)
    assert lacking(wanted, {"a": 8, "b": 8, "c": 0}) == []
    assert lacking(wanted, {"a": 8, "b": 8}) == ["Ray has 2 of 3 nodes: a, b"]
    assert lacking(wanted, {"a": 8, "b": 0, "c": 0}) == ["c has 0 of 8 GPUs"]


def test_a_node_that_lost_gpus_is_named_with_both_counts() -> None:
    assert lacking(ExpectedNodes(2, 8, ("n1", "n2")), {"n1": 8, "n2": 7}) == ["n2 has 7 of 8 GPUs"]


def test_the_dead_have_not_joined() -> None:
    nodes = [
        {"NodeName": "n1", "Alive": True, "Resources": {"GPU": 8.0, "CPU": 3.0}},
        {"NodeName": "n2", "Alive": False, "Resources": {}},
        {"NodeName": "n3", "Alive": True, "Resources": {"CPU": 3.0}},
    ]
    assert joined(nodes) == {"n1": 8, "n3": 0}
