"""Rows of results: statistics, what makes two runs comparable, and the files that keep them."""

from pathlib import Path

import pytest

from hybridrl.bench import record
from hybridrl.bench.base import Bench, Case, Found, Metric
from hybridrl.errors import ConfigError

CASE = Case(name="small", config={"tokens": 8, "shape": (1, 5)})
BENCH = Bench(
    name="step",
    about="",
    metrics={"step_s": Metric("s", "a step", "lower")},
    cases=[CASE],
    smoke=[],
    measure=lambda case: {},
)
HARDWARE = {"processor": "EPYC", "cores": 2, "gpus": []}


def row(case: str = "small", contestant: str = "hybridrl", time: str = "now") -> record.Row:
    return {
        **{"bench": "step", "machine_class": "a", "case": case, "contestant": contestant, "time": time},
        **{"config_hash": "0", "metrics": {}},
    }


def test_a_number_is_the_median_between_its_quartiles() -> None:
    found = record.statistics([5.0, 1.0, 2.0, 3.0, 4.0])
    assert found == {"median": 3.0, "quartile_1": 2.0, "quartile_3": 4.0, "repeats": 5}
    assert record.statistics([2.0, 1.0])["quartile_3"] == 2.0
    assert record.statistics([0.123456789])["median"] == 0.12346


def test_the_hash_is_of_sizes_and_not_of_repeats() -> None:
    def hashed(**config: object) -> str:
        return record.config_hash("step", Case(name="small", config=config))

    assert hashed(a=1, b=2) == hashed(b=2, a=1) != hashed(a=1, b=3)
    many = Case(name="small", config={"a": 1}, repeats=50)
    assert record.config_hash("step", many) == hashed(a=1) != record.config_hash("swap", many)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "2 cores of EPYC"),
        ({"gpus": ["H100"] * 8}, "8 x H100"),
        ({"gpus": ["H100", "A100", "H100"]}, "2 x H100 + 1 x A100"),
    ],
)
def test_a_machine_class_is_its_gpus_or_its_cores(changes: dict, name: str) -> None:
    assert record.machine_class(HARDWARE | changes) == name


def test_a_row_has_all_that_a_comparison_needs() -> None:
    found = record.row(BENCH, Found(case=CASE, samples={"step_s": [1.0, 2.0, 3.0]}))
    assert found["metrics"]["step_s"] == {
        **{"unit": "s", "median": 2.0, "quartile_1": 1.5, "quartile_3": 2.5, "repeats": 3}
    }
    assert found["versions"]["torch"] and found["hardware"]["load"] >= 0
    other = record.row(BENCH, Found(case=CASE, samples={}, contestant="trl", versions={"trl": "1"}))
    assert "torch" not in other["versions"] and other["contestant"] == "trl"


def test_a_later_run_replaces_the_row_of_an_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "step.jsonl"
    record.store(file, [row(), row(case="large")])
    record.store(file, [row(time="later"), row(contestant="trl")])
    assert [(one["case"], one["contestant"], one["time"]) for one in record.read(file)] == [
        ("large", "hybridrl", "now"),
        ("small", "hybridrl", "later"),
        ("small", "trl", "now"),
    ]


@pytest.mark.parametrize("line", ["{", "[]", '{"case": "small"}'])
def test_a_line_that_is_no_row_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "step.jsonl"
    record.store(file, [row()])
    file.write_text(f"{file.read_text()}{line}\n")
    with pytest.raises(ConfigError, match=r"step\.jsonl:2 is no result of hybridrl bench"):
        record.read(file)
