"""A measured case as one JSON line: statistics, sizes, hardware, versions. Reads and stores files of them."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from hybridrl.bench.base import Bench, Case, Found
from hybridrl.config.files import atomic_write
from hybridrl.errors import ConfigError
from hybridrl.hosts.machine import GIB, Machine
from hybridrl.observe.summary import versions

Row = Mapping[str, Any]
"""One line of a file of results."""

KEY = ("machine_class", "case", "contestant")
"""Fields that are together unique in a file: a later run replaces the line of an earlier one."""


def row(bench: Bench, found: Found) -> dict[str, Any]:
    """The JSON line of what was measured."""
    hardware = hardware_here()
    return {
        "bench": bench.name,
        "case": found.case.name,
        "contestant": found.contestant,
        "machine_class": machine_class(hardware),
        "config_hash": config_hash(bench.name, found.case),
        "config": dict(found.case.config),
        "warm_up": found.case.warm_up,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "hardware": hardware,
        "versions": {"python": platform.python_version(), **(found.versions or versions())},
        "metrics": {
            name: {"unit": bench.metrics[name].unit, **statistics(values)}
            for name, values in found.samples.items()
        },
    }


def statistics(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, and the number of values; the quartiles of one or two values are their ends."""
    if len(values) > 2:
        low, _, high = quantiles(values, n=4, method="inclusive")
    else:
        low, high = min(values), max(values)
    found = {"median": median(values), "quartile_1": low, "quartile_3": high}
    return {name: _rounded(value) for name, value in found.items()} | {"repeats": len(values)}


def config_hash(bench: str, case: Case) -> str:
    """Twelve digits that are equal if the sizes of two runs are."""
    text = json.dumps([bench, case.name, case.config], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def hardware_here() -> dict[str, Any]:
    """What this machine has, and how busy it was before the measurement."""
    machine = Machine.here()
    return {
        "processor": _processor(),
        "cores": machine.cores,
        "memory_gib": round(machine.memory_bytes / GIB, 1),
        "gpus": [gpu.name for gpu in machine.gpus],
        "load": round(os.getloadavg()[0], 2),
    }


def machine_class(hardware: Mapping[str, Any]) -> str:
    """A name that machines share whose times can be compared: its GPUs, or its processor and cores."""
    names: list[str] = hardware["gpus"]
    if names:
        return " + ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return f"{hardware['cores']} cores of {hardware['processor']}"


def read(file: Path) -> list[Row]:
    """The rows of a file; none if it does not exist.

    Raises:
        ConfigError: a line is no row.
    """
    if not file.exists():
        return []
    found = []
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        try:
            read_row = json.loads(line)
            assert {*KEY, "bench", "config_hash", "metrics"} <= read_row.keys()
        except (ValueError, AttributeError, AssertionError) as error:
            raise ConfigError(
                f"{file}:{number} is no result of hybridrl bench", fix="delete the line, and measure again"
            ) from error
        found.append(read_row)
    return found


def store(file: Path, rows: Iterable[Row]) -> None:
    """Put rows into a file. They replace earlier ones of the same machine class, case and contestant."""
    kept = {_key(one): one for one in read(file)} | {_key(one): one for one in rows}
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, "".join(f"{json.dumps(kept[key])}\n" for key in sorted(kept)))


def _key(one: Row) -> tuple[str, ...]:
    return tuple(one[name] for name in KEY)


def _rounded(value: float) -> float:
    """Five digits that mean something."""
    return float(f"{value:.5g}")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
