"""Every benchmark of `hybridrl bench` runs at its smallest sizes, and measures what it declares."""

import math
from pathlib import Path

import pytest

from hybridrl.bench import record
from hybridrl.bench.names import NameOfBench
from hybridrl.bench.peers.work import written
from hybridrl.bench.run import Request, bench_of, names, run
from hybridrl.bench.workloads.e2e_cases import CASES, QUICKSTART
from hybridrl.config.load import load

ROOT = Path(__file__).parents[3]


SLOW = {"e2e"}
"""It starts a whole run; tests/e2e/test_run.py reads one that is there anyway."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in names()])
def test_a_benchmark_runs(name: NameOfBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bench = bench_of(name)
    found = run(bench, Request(smoke=True), lambda *_: None)
    [row] = found.rows
    medians = {metric: value["median"] for metric, value in row["metrics"].items()}
    assert medians and all(map(math.isfinite, medians.values()))
    assert medians.keys() <= bench.metrics.keys()


@pytest.mark.parametrize("name", names())
def test_what_is_gated_or_in_the_readme_has_a_better_side(name: NameOfBench) -> None:
    bench = bench_of(name)
    assert bench.name == name and any(metric.gated for metric in bench.metrics.values())
    for metric in bench.metrics.values():
        assert metric.unit and metric.meaning
        assert metric.better or not (metric.gated or metric.headline)


@pytest.mark.parametrize("name", names())
def test_names_of_cases_are_unique_and_their_sizes_are_json(name: NameOfBench) -> None:
    bench = bench_of(name)
    cases = [*bench.cases, *bench.smoke]
    assert len({case.name for case in cases}) == len(cases)
    assert len({record.config_hash(name, case) for case in cases}) == len(cases)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_runs_have_valid_configs(case, tmp_path: Path) -> None:
    cfg = load(written(case.config, tmp_path, 3), []).config
    assert cfg.run.steps == 3 and cfg.cluster.gpus_per_node in (None, case.gpus)


def test_the_quickstart_is_that_of_the_recipe(tmp_path: Path) -> None:
    def compared(path: Path) -> dict:
        found = load(path, ["data.heldout=null"]).config.model_dump(exclude={"run"})
        return found

    assert compared(written(QUICKSTART, tmp_path, 3)) == compared(ROOT / "configs/quickstart.yaml")
