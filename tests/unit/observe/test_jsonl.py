"""metrics.jsonl: what is written can be read, whatever happened in between."""

import json
import math

import observe_values as values
import pytest

from hybridrl.errors import RunFolderError
from hybridrl.observe.jsonl import JsonLines, read


def written(path, records, *, resume_step=None) -> list[str]:
    """Write records; returns the warnings."""
    warnings = []
    lines = JsonLines(path, resume_step=resume_step, warn=warnings.append)
    for record in records:
        lines.write(record)
    lines.close()
    return warnings


def steps(path) -> list[tuple[str, int]]:
    return [(r.kind, r.step) for r in read(path)]


def test_records_come_back(tmp_path) -> None:
    records = [values.heldout(0, 0.125), values.record(1, actor__lr=5e-4)]
    assert written(tmp_path / "m.jsonl", records) == []
    assert read(tmp_path / "m.jsonl") == records


def test_a_line_is_there_before_the_file_is_closed(tmp_path) -> None:
    lines = JsonLines(tmp_path / "m.jsonl", resume_step=None, warn=print)
    lines.write(values.record(1))
    assert steps(tmp_path / "m.jsonl") == [("step", 1)]
    lines.close()


def test_numbers_that_json_cannot_say_are_null_and_reported(tmp_path) -> None:
    record = values.record(3, a=math.nan, b=math.inf, c=1.0)
    warnings = written(tmp_path / "m.jsonl", [record])
    line = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=pytest.fail)
    assert (line["a"], line["b"], line["c"], line["non_finite"]) == (None, None, 1.0, 2)
    assert warnings == ["step 3: 2 metrics are not finite numbers, first a"]
    found = read(tmp_path / "m.jsonl")[0].metrics
    assert math.isnan(found["a"]) and math.isnan(found["b"]) and found["c"] == 1.0


def test_a_new_run_does_not_touch_the_lines_of_another(tmp_path) -> None:
    written(tmp_path / "m.jsonl", [values.record(1)])
    with pytest.raises(RunFolderError, match="already"):
        JsonLines(tmp_path / "m.jsonl", resume_step=None, warn=print)
    assert steps(tmp_path / "m.jsonl") == [("step", 1)]


def test_a_resumed_run_has_every_step_once(tmp_path) -> None:
    path = tmp_path / "m.jsonl"
    written(path, [values.heldout(0, 0.0), *(values.record(i) for i in (1, 2, 3)), values.heldout(3, 0.5)])
    written(path, [values.record(3), values.heldout(3, 0.5), values.record(4)], resume_step=2)
    assert steps(path) == [
        ("evaluation", 0),
        ("step", 1),
        ("step", 2),
        ("step", 3),
        ("evaluation", 3),
        ("step", 4),
    ]


def test_an_evaluation_made_again_after_a_resume_is_not_repeated(tmp_path) -> None:
    path = tmp_path / "m.jsonl"
    written(path, [values.record(1), values.record(2), values.heldout(2, 0.5)])
    written(path, [values.heldout(2, 0.5), values.record(3)], resume_step=2)
    assert steps(path) == [("step", 1), ("step", 2), ("evaluation", 2), ("step", 3)]


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path) -> None:
    path = tmp_path / "m.jsonl"
    written(path, [values.record(1), values.record(2)])
    path.write_bytes(path.read_bytes()[:-20])
    assert steps(path) == [("step", 1)]
    written(path, [values.record(2)], resume_step=1)
    assert steps(path) == [("step", 1), ("step", 2)]


def test_resuming_leaves_no_other_file(tmp_path) -> None:
    path = tmp_path / "m.jsonl"
    written(path, [values.record(1)])
    written(path, [values.record(2)], resume_step=1)
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_a_resume_without_the_file_starts_one(tmp_path) -> None:
    written(tmp_path / "m.jsonl", [values.record(5)], resume_step=4)
    assert steps(tmp_path / "m.jsonl") == [("step", 5)]


def test_no_file_has_no_records(tmp_path) -> None:
    assert read(tmp_path / "m.jsonl") == []
