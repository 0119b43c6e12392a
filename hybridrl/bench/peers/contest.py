"""Which peers there are, by the names of `hybridrl bench e2e --peer`."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from hybridrl.bench.base import Bench, Case, Found
from hybridrl.bench.names import Peer
from hybridrl.bench.peers import launches, logs, trl_runs
from hybridrl.bench.run import Contest
from hybridrl.errors import ConfigError


def contest_of(peer: Peer | None, log: Path | None = None) -> Contest | None:
    """How a case is measured beside a peer; None: without one.

    Raises:
        ConfigError: a log was given of a peer that this program runs itself, or of none.
    """
    if log is None:
        return trl_runs.contest if peer == "trl" else None
    if peer is None or peer not in launches.PEERS:
        raise ConfigError("--log is what verl or OpenRLHF printed", fix="give --peer verl or --peer openrlhf")
    return lambda bench, case: _beside_log(bench, case, peer, log)


def is_launched_by_hand(peer: Peer) -> bool:
    """Whether somebody else runs the peer: this program writes its launch, or reads what it printed."""
    return peer in launches.PEERS


def write_launches(
    peer: Peer, bench: Bench, names: Collection[str], folder: Path | None
) -> Iterator[tuple[str, str]]:
    """Write a launch for each case of these names; yields headings and texts for a person.

    Args:
        folder: of all cases; None: runs/bench.
    """
    for case in (case for case in bench.cases if case.name in names):
        place = (folder or Path("runs/bench")) / f"{peer}-{case.name.replace(' ', '-')}"
        *_, script = launches.write(peer, case, place)
        yield "wrote", f"{script}; run it where {peer} is installed, with {case.gpus} GPUs"
        log = place / launches.LOG
        yield "then", f'hybridrl bench e2e --peer {peer} --case "{case.name}" --log {log}'


def _beside_log(bench: Bench, case: Case, peer: str, log: Path) -> Sequence[Found]:
    """The log is read first: a wrong one costs no run."""
    theirs = logs.read(peer, log, case)
    ours = Found(case=case, samples=bench.measure(case))
    ratios = trl_runs.ratios(ours.samples, theirs.samples)
    samples = {**theirs.samples, **ratios}
    return [ours, Found(case=case, samples=samples, contestant=peer, versions=theirs.versions)]
