"""The parts of the soak that decide: which kills it asks for, what it counts, and when memory is flat."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import faults
from benchmarks._soak import SCENARIOS, is_of, plan, planted_that_happened, processes
from benchmarks._soak_memory import growth
from hybridrl.faults import parse


@pytest.mark.parametrize("mode", SCENARIOS)
def test_kills_are_faults_that_a_run_can_suffer(mode: str) -> None:
    kills = [kill for seed in range(20) for kill in plan(random.Random(seed), SCENARIOS[mode], 12, 9)]
    for kill in kills:
        if kill.phase:
            assert parse(str(kill)).kind == "kill"
    found = {kill.kind for kill in kills}
    assert found == {name.partition(":")[0] for name in (*SCENARIOS[mode].planted, *SCENARIOS[mode].outside)}


def test_every_third_kill_is_of_the_driver_or_of_ray() -> None:
    kills = plan(random.Random(1), SCENARIOS["synchronous"], 12, 9)
    assert [kill.step for kill in kills] == sorted({kill.step for kill in kills})
    drivers = [place for place, kill in enumerate(kills) if kill.kind in ("driver", "raylet", "gcs_server")]
    assert drivers == [2, 5, 8]


def test_only_the_kinds_that_are_asked_for_are_killed() -> None:
    kills = plan(random.Random(1), SCENARIOS["synchronous"], 12, 9, ("scheduler", "engine"))
    assert {kill.kind for kill in kills} == {"scheduler", "engine"} and len(kills) == 9


def test_only_kills_that_happened_count(tmp_path: Path) -> None:
    lines = [{"fault": "kill:engine:0@step=1,phase=swap"}, {"fault": "slow:trainer:0@step=2,phase=load"}]
    (tmp_path / "faults.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"fau')
    assert planted_that_happened(tmp_path) == ["kill:engine:0@step=1,phase=swap"]
    run = {"happened": ["kill:engine:0@step=1,phase=swap", "kill:raylet@step=4"], "ended": True}
    zeros = dict.fromkeys(("differs", "lost_or_twice", "corrupt", "orphans", "leftovers"), 0)
    found = faults.summary([run | zeros, run | zeros])
    assert found["kills"] == {"engine": 2, "raylet": 2}
    assert (found["kills_in_all"], found["kills_of_driver_or_ray"]) == (4, 2)


def test_memory_that_grows_is_told_from_one_that_is_flat() -> None:
    flat = [(float(second), 100.0 + second % 2) for second in range(0, 600, 5)]
    grows = [(float(second), 100.0 + second / 10) for second in range(0, 600, 5)]
    assert growth(flat[:50]) is None
    size, grown = growth(flat) or (0.0, 0.0)
    assert size == pytest.approx(100.5, abs=0.1) and abs(grown) < 0.2
    assert (growth(grows) or (0.0, 0.0))[1] == pytest.approx(24.0, abs=1.0)


def test_processes_are_known_by_their_temporary_folder(tmp_path: Path) -> None:
    inside = tmp_path / "t"
    inside.mkdir()
    sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", "raylet/raylet"]
    with subprocess.Popen(sleep, stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": str(inside)}) as child:
        try:
            assert child.stdout is not None and child.stdout.readline()
            (found,) = processes(tmp_path)
            assert found.pid == child.pid and is_of(found, "raylet") and not is_of(found, "gcs_server")
            assert processes(tmp_path / "other") == []
        finally:
            child.kill()
