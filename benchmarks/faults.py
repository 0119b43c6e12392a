"""A soak: random processes of runs are killed, and the runs are compared with one that nothing happened to.

Each run gets a seed and suffers kills at random steps and phases: of engines, their schedulers and workers,
trainer ranks, reward workers and scoring processes, environments, programs and the driver, and of Ray's own
processes at random moments. A run that ends is launched again with --continue. Every kill counts only if it
happened. Synchronous runs must equal the calm run bit for bit; in every run each group of prompts must be
trained on once.

    python -m benchmarks.faults --modes synchronous,streaming --runs 4 --kills 8 --json FILE
    python -m benchmarks.faults --add FILE,FILE --runs 0 --json FILE     the runs of several results together
    python -m benchmarks.faults --recovery 3       how long it takes to go on after a kill
    python -m benchmarks.faults --soak 1800        memory of every process over half an hour of kills
"""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._recovery import recovery
from benchmarks._report import arguments, publish
from benchmarks._soak import DRIVERS, SCENARIOS, Played, differs
from benchmarks._soak_memory import memory_soak
from benchmarks._soak_runs import Soak

RESULT = {
    "runs": "mode, seed, kills, those that happened, launches, seconds, and what was found of each run",
    "kills": "kind of process -> how many kills happened",
    "kills_in_all": "the sum of them",
    "kills_of_driver_or_ray": "those of driver, raylet and GCS",
    "runs_that_did_not_end": "runs that did all steps neither by themselves nor resumed",
    "runs_that_differ": "synchronous runs whose metrics or model are not those of the calm run",
    "groups_lost_or_twice": "groups of prompts that a run trained on never or twice",
    "corrupt_checkpoints": "committed checkpoints whose files do not match their record",
    "orphans": "processes that ran 30 s after their run had ended",
    "leftovers": "temporary files that were there 30 s after their run had ended",
    "recovery": "seconds until a killed engine serves again, its start-up, a swap; and from the kill of a "
    "trainer rank to the end of the next step, if the engines stay, and if all starts again; null: none",
    "soak": "memory of every kind of process, steps and accuracy of a long run; null: not measured",
}


def main() -> None:
    options = arguments(
        __doc__,
        smoke={"runs": 1, "steps": 3, "kills": 1, "modes": "small"},
        modes="synchronous,streaming",
        runs=6,
        steps=12,
        kills=8,
        seed=0,
        only="",
        add="",
        recovery=0,
        soak=0,
    )
    before = [json.loads(Path(file).read_text())["result"] for file in filter(None, options.add.split(","))]
    found = {
        name: next((one[name] for one in reversed(before) if one[name]), None)
        for name in ("recovery", "soak")
    }
    with tempfile.TemporaryDirectory(prefix="hybridrl-soak-") as name:
        folder = Path(name)
        if options.recovery or options.soak:
            options.runs = 0
        if options.recovery:
            found["recovery"] = recovery(folder, options.recovery)
        if options.soak:
            found["soak"] = memory_soak(folder, options.soak, options.seed)
        runs = play_all(options, folder) if options.runs else []
    runs = [*(run for one in before for run in one["runs"]), *(run.as_dict() for run in runs)]
    publish(summary(runs) | found, options.json)


def play_all(options: Any, folder: Path) -> list[Played]:
    modes, runs, calm = options.modes.split(","), [], dict[str, Played]()
    for number in range(options.runs):
        seed, mode = options.seed + number, modes[number % len(modes)]
        soak = Soak(mode, folder, options.steps)
        if mode not in calm and SCENARIOS[mode].is_exact:
            calm[mode] = soak.play(f"calm_{mode}", 0, 0)
            runs.append(calm[mode])
        only = tuple(filter(None, options.only.split(",")))
        runs.append(soak.play(f"run{number}", seed, options.kills, only))
        if mode in calm:
            runs[-1].differs = runs[-1].ended and differs(folder / calm[mode].name, folder / runs[-1].name)
        print(json.dumps(runs[-1].as_dict()), file=sys.stderr, flush=True)
    return runs


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    kills = Counter(fault.partition("@")[0].split(":")[1] for run in runs for fault in run["happened"])
    return {
        "runs": list(runs),
        "kills": dict(sorted(kills.items())),
        "kills_in_all": kills.total(),
        "kills_of_driver_or_ray": sum(kills[kind] for kind in DRIVERS),
        "runs_that_did_not_end": sum(not run["ended"] for run in runs),
        "runs_that_differ": sum(run["differs"] for run in runs),
        "groups_lost_or_twice": sum(run["lost_or_twice"] for run in runs),
        "corrupt_checkpoints": sum(run["corrupt"] for run in runs),
        "orphans": sum(run["orphans"] for run in runs),
        "leftovers": sum(run["leftovers"] for run in runs),
    }


if __name__ == "__main__":
    main()
