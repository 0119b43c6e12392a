"""What the doctor makes of a machine."""

import pytest

from hybridrl.doctor.doctor_report import Finding, Report
from hybridrl.doctor.findings import examine


def names(report: Report) -> list[str]:
    return [finding.name for finding in report.findings]


def test_a_missing_part_keeps_a_run_from_starting() -> None:
    ok, note = Finding("a", "ok", "1"), Finding("b", "note", "not installed", "make setup")
    missing = Finding("c", "missing", "not installed", "make setup")
    assert Report((ok, note)).can_run
    assert not Report((ok, note, missing)).can_run


def test_everything_that_is_not_ok_says_how_to_get_it() -> None:
    assert all(finding.fix for finding in examine().findings if finding.status != "ok")


@pytest.mark.parametrize("name", ["python", "memory", "disk", "/dev/shm", "GPUs", "torch", "sglang", "ray"])
def test_the_doctor_looks_at(name: str) -> None:
    assert names(examine()).count(name) == 1
