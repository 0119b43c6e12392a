"""How long it takes until a killed engine serves again, beside what it cannot do without: its start-up and a
weight swap; and until a run whose trainer rank was killed has done the next step, with its engines and
without.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._soak import records
from hybridrl.faults import FAULTS_FILE
from hybridrl.models.tiny import qwen3_arithmetic
from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.sglang.sizes import SGLangParallel
from hybridrl.rollout.sglang.start import SGLangEngine

_CONFIG = "configs/quickstart.yaml"
_PHASES = ("generate", "swap")


def recovery(folder: Path, times: int) -> dict[str, Any]:
    """The medians over `times` runs, in seconds, of an engine that is killed in each phase.

    The run has one engine, so that nothing else works while it starts.
    """
    start_s = [_start_s(folder / f"alone{number}") for number in range(times)]
    found: dict[str, list[float]] = {phase: [] for phase in _PHASES}
    swaps_s, restarts = [], 0
    for number in range(times):
        for phase in _PHASES:
            kill = f"kill:engine:0@step=3,phase={phase}"
            run, said = _launched(folder, f"recovery{number}_{phase}", [kill])
            restarts += " ".join(said.split()).count("again from step")
            found[phase].append(_lost_s(said))
            swaps_s += [record["sync/time_s"] for record in records(run, "step")]
    start, swap = statistics.median(start_s), statistics.median(swaps_s)
    return {
        "engine_start_s": round(start, 2),
        "swap_s": round(swap, 3),
        "goal_s": round(start + swap, 2),
        **{f"killed_in_{phase}_s": round(statistics.median(found[phase]), 2) for phase in _PHASES},
        "times": times,
        "restarts_of_the_run": restarts,
        **_of_trainer(folder, times),
    }


def _of_trainer(folder: Path, times: int) -> dict[str, float]:
    """Medians of the seconds from the kill of a trainer rank to the end of the first step after it.

    Checkpoints are those of steps 2 and 4. After the kill in step 3 trainer and reward start again, and after
    one in step 4 too, everything.
    """
    found: dict[str, list[float]] = {"trainer_again_s": [], "run_again_s": []}
    for number in range(times):
        for name, steps in (("trainer_again_s", (3,)), ("run_again_s", (3, 4))):
            kills = [f"kill:trainer:0@step={step},phase=update" for step in steps]
            words = ["run.save_every=2", "run.max_restarts=2", "run.async_save=false"]
            run, said = _launched(folder, f"{name}{number}", kills, words)
            assert " ".join(said.split()).count("again from step 2") == len(steps), said
            lines = (run / FAULTS_FILE).read_text().splitlines()
            killed_at = json.loads(lines[-1])["time"]
            next_at = next(record["time"] for record in records(run, "step") if record["step"] == 3)
            found[name].append(next_at - killed_at)
    return {name: round(statistics.median(seconds), 2) for name, seconds in found.items()}


def _start_s(folder: Path) -> float:
    """Seconds in which an engine starts that has the machine for itself."""
    folder.mkdir(parents=True)
    qwen3_arithmetic(folder / "model", 0)
    setup = EngineSetup(
        model_folder=str(folder / "model"),
        log_path=str(folder / "engine.log"),
        parallel=SGLangParallel(),
        max_prompt_tokens=8,
        max_response_tokens=2,
        version=None,
    )
    began = time.monotonic()
    engine = SGLangEngine(setup)
    took_s = time.monotonic() - began
    engine.shutdown()
    return took_s


def _launched(folder: Path, name: str, kills: Sequence[str], more: Sequence[str] = ()) -> tuple[Path, str]:
    """The folder and the output of a run with one engine."""
    words = [
        *(f"run.folder={folder}", f"run.name={name}", "run.steps=5", "run.evaluate_every=0"),
        *("rollout.num_engines=1", "observe.sinks=[]", "run.export=false", *more),
        *(word for kill in kills for word in ("--inject", kill)),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "hybridrl", "launch", _CONFIG, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return folder / name, done.stdout


def _lost_s(said: str) -> float:
    """Seconds between the message that the engine is lost and the one that it serves again."""
    (found,) = re.findall(r"serves again, ([\d.]+) s after it was lost", " ".join(said.split()))
    return float(found)
