"""Where ranks of several nodes meet."""

import socket

import pytest

from hybridrl.cluster.network import Network, at, in_folder, interface_of
from hybridrl.cluster.network import _free_ports as free_ports
from hybridrl.errors import ResourceError


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_the_interface_is_that_of_the_address(address):
    assert interface_of(address) == "lo"


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ResourceError, match="192.0.2.7, which no network interface of it has"):
        interface_of("192.0.2.7")


def test_ports_are_free_and_differ():
    ports = free_ports("127.0.0.1", 3)
    assert len(set(ports)) == 3
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_every_group_has_its_own_rendezvous(tmp_path):
    network = Network("10.0.0.5", "ib0", (20_001, 20_002, 20_003))
    rendezvous = at(network)
    assert network.of_engine == "10.0.0.5:20003"
    assert [rendezvous("trainers"), rendezvous("critics")] == ["tcp://10.0.0.5:20001", "tcp://10.0.0.5:20002"]
    assert rendezvous("trainers") == "tcp://10.0.0.5:20001", "groups that start again take the ports again"
    rendezvous = in_folder(tmp_path)
    assert rendezvous("trainers") != rendezvous("trainers")
