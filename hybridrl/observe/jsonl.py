"""metrics.jsonl: one line per policy update and per evaluation. Curve and summary are drawn from it."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hybridrl.config.files import atomic_write
from hybridrl.errors import RunFolderError
from hybridrl.observe.record import Record
from hybridrl.wording import counted

_HEAD = ("kind", "step", "time", "wall_s", "non_finite")


class JsonLines:
    """Appends records to a file; every line is with the operating system before write() returns."""

    def __init__(self, path: Path, *, resume_step: int | None, warn: Callable[[str], None]) -> None:
        """
        Args:
            resume_step: the update that a resumed run goes on from; lines of later steps are cut off.
                None: a new run.

        Raises:
            RunFolderError: a new run, and the file is there already.
        """
        self._warn, self._written = warn, set()
        if resume_step is None and path.exists():
            raise RunFolderError(
                f"{path.name} is there already", where=str(path), fix="--resume continues the run"
            )
        if resume_step is not None and path.exists():
            kept = list(_kept_lines(path, resume_step))
            atomic_write(path, "".join(f"{line}\n" for _, line in kept))
            self._written = {key for key, _ in kept if key[1] == resume_step}
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> bool:
        """Append a record. False: the file has it already, and the resumed run has made it again."""
        key = (record.kind, record.step)
        if key in self._written:
            return False
        line = {
            "kind": record.kind,
            "step": record.step,
            "time": round(record.time, 3),
            "wall_s": round(record.wall_s, 3),
        }
        broken = [name for name, value in record.metrics.items() if not math.isfinite(value)]
        if broken:
            line["non_finite"] = len(broken)
            what = counted(len(broken), "metric is not a finite number", "metrics are not finite numbers")
            self._warn(f"step {record.step}: {what}, first {broken[0]}")
        line |= {name: None if name in broken else value for name, value in record.metrics.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        return True

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[Record]:
    """The records of a run, in order, null as NaN; a line that a crash cut short is left out."""
    return [_record(line) for line in _whole_lines(path)] if path.exists() else []


def _kept_lines(path: Path, last_step: int) -> Iterator[tuple[tuple[str, int], str]]:
    for line in _whole_lines(path):
        if line["step"] <= last_step:
            yield (line["kind"], line["step"]), json.dumps(line, allow_nan=False)


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, Mapping) and {"kind", "step"} <= line.keys():
            yield dict(line)


def _record(line: Mapping[str, Any]) -> Record:
    found = {name: value for name, value in line.items() if name not in _HEAD}
    metrics = {name: math.nan if value is None else value for name, value in found.items()}
    return Record(
        kind=line["kind"], step=line["step"], time=line["time"], wall_s=line["wall_s"], metrics=metrics
    )
