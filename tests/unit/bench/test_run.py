"""Cases are chosen, measured, stored and compared; what cannot work is refused before it is measured."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybridrl.bench import record, run, table
from hybridrl.bench.base import Bench, Case, Found, Metric
from hybridrl.bench.run import Request
from hybridrl.errors import ConfigError, ResourceError


def bench(seconds: list[float] | None = None, measured: list[Case] | None = None) -> Bench:
    """A benchmark that takes the seconds that it is told."""

    def measure(case: Case) -> Mapping[str, list[float]]:
        if measured is not None:
            measured.append(case)
        return {"step_s": seconds or [1.0] * case.repeats}

    return Bench(
        name="step",
        about="",
        metrics={"step_s": Metric("s", "a step", "lower", gated=True, headline="A step")},
        cases=[
            Case(name="small", config={"size": 1}),
            Case(name="large", config={"size": 2}),
            Case(name="node", config={"size": 3}, gpus=10**6),
        ],
        smoke=[Case(name="smoke", config={"size": 0}, repeats=1)],
        measure=measure,
    )


def quiet(*_: str) -> None:
    pass


def test_all_cases_that_this_machine_can_run_are_measured_and_told() -> None:
    said: list[tuple[str, str]] = []
    found = run.run(bench(), Request(), lambda *line: said.append(line))
    assert [row["case"] for row in found.rows] == ["small", "large"] and found.holds
    assert said[1] == ("", "step_s  1 s  a step")


def test_cases_and_repeats_can_be_chosen() -> None:
    measured: list[Case] = []
    run.run(bench(measured=measured), Request(cases=["large"], repeats=9), quiet)
    run.run(bench(measured=measured), Request(smoke=True), quiet)
    assert [(case.name, case.repeats) for case in measured] == [("large", 9), ("smoke", 1)]


def test_what_was_stored_is_compared_with(tmp_path: Path) -> None:
    run.run(bench([1.0]), Request(store=True, results=tmp_path), quiet)
    same = run.run(bench([1.05]), Request(check=True, results=tmp_path), quiet)
    slower = run.run(bench([1.5]), Request(check=True, results=tmp_path, cases=["small"]), quiet)
    assert same.holds and not slower.holds
    assert [*run.verdicts(slower)] == ["WORSE     small: step_s 1.5, stored 1, 1.50 x as bad"]
    assert run.run(bench([1.5]), Request(check=True, results=tmp_path, tolerance=2.0), quiet).holds


def test_nothing_is_measured_that_could_not_be_compared(tmp_path: Path) -> None:
    measured: list[Case] = []
    check = Request(check=True, results=tmp_path)
    with pytest.raises(ConfigError, match="no stored run of bench step"):
        run.run(bench(measured=measured), check, quiet)
    run.run(bench(), Request(store=True, results=tmp_path, cases=["small"]), quiet)
    with pytest.raises(ConfigError, match="case large was never measured"):
        run.run(bench(measured=measured), check, quiet)
    assert not measured


def test_unknown_and_too_large_cases_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no case huge.*its cases are small, large, node"):
        run.run(bench(), Request(cases=["huge"]), quiet)
    with pytest.raises(ResourceError, match=r"case node needs 1000000 GPUs, this machine has \d"):
        run.run(bench(), Request(cases=["node"]), quiet)


@pytest.mark.parametrize(
    ("name", "request_", "peer", "what"),
    [
        ("step", Request(smoke=True, store=True), None, "--smoke"),
        ("step", Request(check=True, store=True), None, "--store would replace"),
        ("step", Request(), "trl", "--peer trl runs whole steps"),
        ("e2e", Request(check=True), "trl", "--check compares hybridrl with itself"),
    ],
)
def test_options_that_contradict_one_another_are_refused(
    name: Any, request_: Request, peer: Any, what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        run.refuse_together(name, request_, peer)


def test_contestants_have_rows_of_their_own() -> None:
    def contest(of: Bench, case: Case) -> list[Found]:
        return [Found(case=case, samples={"step_s": [s]}, contestant=who) for who, s in (("a", 1), ("b", 2))]

    found = run.run(bench(), Request(cases=["small"]), quiet, contest)
    assert [(row["contestant"], row["metrics"]["step_s"]["median"]) for row in found.rows] == [
        ("a", 1),
        ("b", 2),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            {"unit": "x", "median": 1.6351, "quartile_1": 1.6, "quartile_3": 1.7, "repeats": 5},
            "1.64 x (1.6 to 1.7)",
        ),
        (
            {"unit": "s", "median": 0.0131, "quartile_1": 0.0131, "quartile_3": 0.0131, "repeats": 1},
            "0.0131 s",
        ),
        ({"unit": "share", "median": 0.0, "quartile_1": 0, "quartile_3": 0, "repeats": 3}, "0"),
        ({"unit": "B", "median": 6829, "quartile_1": 6829, "quartile_3": 6829, "repeats": 3}, "6,829 B"),
    ],
)
def test_numbers_have_three_digits_and_a_unit(value: Mapping[str, Any], text: str) -> None:
    assert table.number(value) == text


def test_tables_have_a_row_for_each_metric_and_a_column_for_each_case() -> None:
    rows = [record.row(bench(), Found(case=case, samples={"step_s": [1.0]})) for case in bench().cases[:2]]
    assert table.markdown(bench(), rows[::-1]).splitlines() == [
        "| metric | small | large | meaning |",
        "| --- | --- | --- | --- |",
        "| `step_s` | 1 s | 1 s | a step |",
    ]
    line = "| A step | 1 s (small); 1 s (large) | `hybridrl bench step` |"
    assert line in table.headlines([(bench(), rows)])


def test_a_table_of_many_cases_has_a_row_for_each() -> None:
    many = replace(bench(), cases=[Case(name=f"case {i}", config={"size": i}) for i in range(6)])
    rows = [record.row(many, Found(case=case, samples={"step_s": [1.0]})) for case in many.cases]
    head, _, first, *_, meaning = table.markdown(many, rows).splitlines()
    assert (head, first) == ("| case | `step_s` |", "| case 0 | 1 s |")
    assert meaning == "- `step_s`: a step"
