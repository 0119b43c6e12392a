"""What --inject reads, and what it refuses with which fix."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from hybridrl.errors import ConfigError
from hybridrl.faults import KINDS, ONLY_AT, PHASES, Fault, Planted, parse, refuse_absent


def test_every_kind_of_fault_is_read_and_written_back() -> None:
    for target, phases in PHASES.items():
        for phase in phases:
            for kind in KINDS:
                if ONLY_AT.get(kind, (target, phase)) != (target, phase):
                    continue
                rank = "" if target == "driver" else ":0"
                text = f"{kind}:{target}{rank}@step=7,phase={phase}"
                assert str(parse(text)) == text
                assert parse(text) == Fault(kind, target, 0, 7, phase)


def test_seconds_and_times_are_read() -> None:
    slow = parse("slow:trainer:1@step=2,phase=save,seconds=0.5,times=3")
    assert slow == Fault("slow", "trainer", 1, 2, "save", seconds=0.5, times=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kill", "is not KIND:TARGET:RANK@step=N,phase=PHASE"),
        ("kill:engine:0:0@step=1,phase=swap", "is not KIND:TARGET:RANK"),
        ("kil:engine:0@step=1,phase=swap", "no kind of fault 'kil': .*'kill' is the nearest"),
        (
            "kill:router@step=1,phase=swap",
            "no target 'router'.*one of engine, engine_worker, trainer, reward, driver",
        ),
        ("kill:engine:0@phase=swap", "has no step"),
        ("kill:engine:0@step=1", "has no phase"),
        ("kill:engine:0@step=1,phase=save", "no phase of target engine 'save': there are generate, swap"),
        ("kill:engine:x@step=1,phase=swap", "RANK = 'x' is not a whole number"),
        ("kill:engine:0@step=-1,phase=swap", "step = '-1' is not a whole number"),
        ("kill:engine:0@step=1.5,phase=swap", "step = '1.5' is not a whole number"),
        ("slow:engine:0@step=1,phase=swap,seconds=nan", "seconds = 'nan' is not a number of seconds"),
        ("slow:engine:0@step=1,phase=swap,second=2", "no option 'second': .*'seconds' is the nearest"),
        ("slow:engine:0@step=1,phase=swap,step=2", "step has two values"),
        ("slow:engine:0@step,phase=swap", "step has no value"),
        ("kill:engine:0@step=1,phase=swap,seconds=2", "seconds is for slow, not for kill"),
        ("kill:engine:0@step=1,phase=swap,times=0", "times = 0: it never happens"),
        ("nan:trainer:1@step=1,phase=swap", "nan happens to trainer in phase update.*nan:trainer:1@step=1"),
        ("disk_full:trainer:1@step=1,phase=save", "disk_full happens to trainer:0"),
    ],
)
def test_what_is_no_fault_is_refused_with_the_nearest(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        parse(text)
    assert refused.value.fix and text in refused.value.where


def test_a_fault_that_the_run_does_not_reach_is_refused() -> None:
    ranks = {"engine": 2, "trainer": 4}
    refuse_absent([parse("kill:engine:1@step=9,phase=swap")], ranks, steps=9)
    with pytest.raises(ConfigError, match="there is no engine 2: the run has 2.*0 to 1"):
        refuse_absent([parse("kill:engine:2@step=9,phase=swap")], ranks, steps=9)
    with pytest.raises(ConfigError, match=r"step 10 is after the last one, run.steps = 9"):
        refuse_absent([parse("kill:trainer:3@step=10,phase=save")], ranks, steps=9)


def test_a_fault_happens_at_its_phase_and_step_as_often_as_it_says() -> None:
    kill, slow = parse("kill:engine:0@step=7,phase=swap"), parse("slow:engine:0@step=7,phase=swap,times=2")
    planted = Planted([kill, slow])
    assert planted.due("swap", 6) is None and planted.due("generate", 7) is None
    assert planted.due("swap", 7, ("slow",)) == slow
    assert [planted.due("swap", 7) for _ in range(3)] == [kill, slow, None]


def test_a_fault_that_happens_is_written_down_before_it_does(tmp_path: Path) -> None:
    record = tmp_path / "faults.jsonl"
    faults = [replace(parse("hang:trainer:1@step=7,phase=save,times=2"), record=str(record))]
    planted = Planted(faults)
    assert planted.due("save", 6) is None and not record.exists()
    assert planted.due("save", 7) is not None and planted.due("save", 7) is not None
    assert planted.due("save", 7) is None
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["fault"] for line in lines] == ["hang:trainer:1@step=7,phase=save"] * 2
    assert all(line["pid"] == os.getpid() and line["time"] > 0 for line in lines)


def test_a_fault_happens_even_if_it_cannot_be_written_down(tmp_path: Path) -> None:
    fault = replace(parse("kill:driver@step=1,phase=save"), record=str(tmp_path / "absent" / "faults.jsonl"))
    assert Planted([fault]).due("save", 1) == fault
