"""A run as its folder has it: metrics, config with origins, rollouts, summary, how it ended."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridrl.errors import RunFolderError
from hybridrl.observe import rollouts
from hybridrl.observe.jsonl import read
from hybridrl.observe.metrics import heldout_reward
from hybridrl.observe.record import Record
from hybridrl.observe.run_session import METRICS_FILE
from hybridrl.observe.summary import SUMMARY_FILE, summarise
from hybridrl.report.series import Series, series_of

CONFIG_FILE = "resolved.yaml"

_LINE = re.compile(r"^(?P<indent> *)(?P<key>[^\s:#]+):(?: (?P<value>.*?))?(?:\s+# (?P<origin>[^#]*))?$")


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the run's config."""

    key: str
    value: str
    """As resolved.yaml has it."""

    origin: str
    """The source of the value: a line of a file, "command line", "default", a preset."""

    @property
    def is_default(self) -> bool:
        return self.origin == "default"


@dataclass(frozen=True, kw_only=True)
class RunData:
    folder: Path
    records: Sequence[Record]
    steps: Mapping[str, Series]
    """Metrics of policy updates."""

    evaluations: Mapping[str, Series]
    settings: Sequence[Setting]
    summary: Mapping[str, Any]
    """As summary.json; of a run that has none yet, computed from its metrics."""

    doing: Mapping[str, Any] | None
    """doing.json: when the run gave its last sign of life, and how it ended; None: there is none."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def heldout(self) -> Series | None:
        """Held-out reward of each evaluation, averaged over data sets."""
        found = [
            Record(kind="evaluation", step=r.step, time=r.time, wall_s=r.wall_s, metrics={"held-out": reward})
            for r in self.records
            if (reward := heldout_reward(r.metrics)) is not None
        ]
        return series_of(found, "evaluation").get("held-out")

    def setting(self, key: str) -> str | None:
        """The text of a key's value; None: the config has no such key."""
        return next((one.value for one in self.settings if one.key == key), None)

    def rollouts(self, most_steps: int) -> list[dict[str, Any]]:
        """Trajectories of the last steps that were written down, and of the first one."""
        path = self.folder / rollouts.ROLLOUTS_FILE
        steps = rollouts.steps(path)
        return rollouts.read(path, steps[:1] + steps[1:][-(most_steps - 1) :])


def read_run(folder: Path) -> RunData:
    """
    Raises:
        RunFolderError: the folder holds no run that has taken a step.
    """
    records = read(folder / METRICS_FILE)
    if not records:
        raise RunFolderError(
            f"{folder} holds no run that has taken a step", fix="name a folder of runs/ with a metrics.jsonl"
        )
    found = _json(folder / SUMMARY_FILE)
    return RunData(
        folder=folder,
        records=records,
        steps=series_of(records),
        evaluations=series_of(records, "evaluation"),
        settings=list(settings_of(_text(folder / CONFIG_FILE))),
        summary=summarise(records, {}) if found is None else found,
        doing=_json(folder / "doing.json"),
    )


def settings_of(text: str) -> Iterator[Setting]:
    """The keys of a resolved.yaml, with their origins."""
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        if not (found := _LINE.match(line)):
            continue
        indent = len(found["indent"])
        above = [(depth, key) for depth, key in above if depth < indent]
        if found["origin"] is None:
            above.append((indent, found["key"]))
        else:
            key = ".".join([*(key for _, key in above), found["key"]])
            yield Setting(key, (found["value"] or "").strip(), found["origin"].strip())


def _text(path: Path) -> str:
    return path.read_text("utf-8", errors="replace") if path.exists() else ""


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
