"""What every result says beside its numbers: hardware, versions, and the command that made it."""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

from hybridrl.hosts.machine import GIB, Machine
from hybridrl.observe.files import atomic_write_json
from hybridrl.observe.summary import versions


def arguments(description: str | None, **options: Any) -> argparse.Namespace:
    """--json FILE, and one option for each keyword, with its default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the result here")
    for name, default in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser.parse_args()


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
