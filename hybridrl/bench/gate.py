"""The regression gate: what was measured now against the stored run of the same machine class."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hybridrl.bench.base import Bench
from hybridrl.bench.record import Row
from hybridrl.errors import ConfigError

TOLERANCE = 1.15
"""How much worse a median may be, as a ratio, where --tolerance says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    case: str
    metric: str
    stored: float
    now: float
    ratio: float
    """How many times worse than stored; below 1: better."""

    failed: bool


def compare(bench: Bench, rows: Sequence[Row], stored: Sequence[Row], tolerance: float) -> list[Compared]:
    """All gated metrics of our own rows.

    A metric fails if its median is worse by more than the tolerance, and if more than chance says so: its
    better quartile is worse than the worse quartile of the stored run.

    Raises:
        ConfigError: there is no stored run of this machine class, or one of other sizes.
    """
    known = {(one["machine_class"], one["case"], one["contestant"]): one for one in stored}
    found = []
    for row in rows:
        before = known.get((row["machine_class"], row["case"], row["contestant"]))
        _refuse_incomparable(bench, row, before, stored)
        assert before is not None
        found += _compared(bench, row, before, tolerance)
    return found


def _refuse_incomparable(bench: Bench, row: Row, before: Row | None, stored: Sequence[Row]) -> None:
    fix = f"hybridrl bench {bench.name} --store"
    if before is None:
        classes = sorted({one["machine_class"] for one in stored if one["case"] == row["case"]})
        has = f"the stored runs are of {', '.join(classes)}" if classes else "no run of it is stored"
        raise ConfigError(
            f"bench {bench.name}: case {row['case']} was never measured on {row['machine_class']}; {has}",
            fix=fix,
        )
    if before["config_hash"] != row["config_hash"]:
        raise ConfigError(
            f"bench {bench.name}: case {row['case']} has other sizes than the stored run "
            f"({row['config_hash']}, stored {before['config_hash']})",
            fix=fix,
        )


def _compared(bench: Bench, row: Row, before: Row, tolerance: float) -> Iterator[Compared]:
    for name, metric in bench.metrics.items():
        now, then = row["metrics"].get(name), before["metrics"].get(name)
        if not metric.gated or now is None or then is None:
            continue
        lower = metric.better == "lower"
        ratio = now["median"] / then["median"] if lower else then["median"] / now["median"]
        apart = now["quartile_1"] > then["quartile_3"] if lower else now["quartile_3"] < then["quartile_1"]
        yield Compared(
            case=row["case"],
            metric=name,
            stored=then["median"],
            now=now["median"],
            ratio=ratio,
            failed=ratio > tolerance and apart,
        )
