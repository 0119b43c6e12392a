"""Which nodes a job is on."""

from hybridrl.reshard.topology import Topology


def test_nodes_are_counted_where_ranks_sit() -> None:
    assert Topology.colocated(4, [2, 2], node_size=8).num_nodes == 1
    assert Topology.colocated(4, [2, 2], node_size=2).num_nodes == 2
    assert Topology.separate(2, [2], node_size=8).num_nodes == 2
