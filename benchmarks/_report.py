"""What all benchmarks share: how they take arguments, and what every result says beside its numbers.

A benchmark is a module with a `main()`, and `RESULT`: the keys of its result, each with what it means. Every
size is an option; `--smoke` is the same program at sizes that take seconds, whose numbers mean nothing.
"""

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridrl.config.files import atomic_write_json
from hybridrl.hosts.machine import GIB, Machine
from hybridrl.observe.summary import versions


def arguments(
    description: str | None,
    *,
    smoke: Mapping[str, Any],
    places: Mapping[str, str] | None = None,
    given: Sequence[str] | None = None,
    **options: Any,
) -> argparse.Namespace:
    """--json FILE, --smoke, and one option for each keyword, with its default.

    Args:
        smoke: defaults of the options under --smoke; what is given on the command line goes before them.
        places: positional arguments, which may be left out, with their defaults.
        given: the command line; None: that of this process.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: to see that it runs")
    for name, default in (places or {}).items():
        parser.add_argument(name, nargs="?", default=default)
    for name, default in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    if unknown := smoke.keys() - options.keys():
        raise ValueError(f"--smoke changes options that there are not: {', '.join(sorted(unknown))}")
    if parser.parse_args(given).smoke:
        parser.set_defaults(**smoke)
    return parser.parse_args(given)


def publish(result: dict[str, Any], file: Path | None) -> None:
    """Print a result, and write it with what it was measured on."""
    machine = Machine.here()
    whole = {
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "hardware": {
            "processor": _processor(),
            "cores": machine.cores,
            "memory_gib": round(machine.memory_bytes / GIB, 1),
            "gpus": [gpu.name for gpu in machine.gpus],
        },
        "versions": {"python": platform.python_version(), **versions()},
        "result": result,
    }
    print(json.dumps(result, indent=2))
    if file is not None:
        atomic_write_json(file, whole)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
