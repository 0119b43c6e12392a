"""Which peers there are, by the names of `hybridrl bench e2e --peer`."""

from hybridrl.bench.names import Peer
from hybridrl.bench.peers import trl_runs
from hybridrl.bench.run import Contest


def contest_of(peer: Peer | None) -> Contest | None:
    """How a case is measured beside a peer; None: without one."""
    return trl_runs.contest if peer == "trl" else None
