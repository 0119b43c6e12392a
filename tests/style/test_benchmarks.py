"""The tables of results in the documentation are those of benchmarks/results."""

from pathlib import Path

import pytest

from hybridrl.bench import record
from hybridrl.bench.document import PAGE, README, filled
from hybridrl.bench.run import RESULTS, bench_of, names

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", [PAGE, README], ids=str)
def test_tables_are_current(page: Path) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert "<!-- bench: " in text
    assert filled(text, ROOT / RESULTS) == text, "python -m hybridrl.bench.document"


def test_every_benchmark_has_a_table() -> None:
    text = (ROOT / PAGE).read_text("utf-8")
    assert all(f"<!-- bench: {name} -->" in text for name in names())


@pytest.mark.parametrize("name", names())
def test_stored_rows_are_of_the_sizes_as_they_are(name: str) -> None:
    bench = bench_of(name)
    hashes = {case.name: record.config_hash(name, case) for case in bench.cases}
    for row in record.read(ROOT / RESULTS / f"{name}.jsonl"):
        assert hashes[row["case"]] == row["config_hash"], f"hybridrl bench {name} --store"
        assert row["metrics"].keys() <= bench.metrics.keys()
