"""Writes the tables of results into docs/benchmarks.md and README.md: python -m hybridrl.bench.document.

A table stands between two comments, and the text around it is written by hand. tests/style says when a table
is not that of benchmarks/results.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hybridrl.bench import record, table
from hybridrl.bench.base import OURS, Bench
from hybridrl.bench.record import Row
from hybridrl.bench.run import RESULTS, bench_of, names
from hybridrl.config.files import atomic_write

PAGE, README = Path("docs/benchmarks.md"), Path("README.md")

_TABLE = re.compile(r"(<!-- bench: (\S+) -->\n).*?(<!-- end of bench -->)", re.DOTALL)


def main(root: Path) -> None:
    for page in (PAGE, README):
        text = (root / page).read_text("utf-8")
        atomic_write(root / page, filled(text, root / RESULTS))


def filled(text: str, results: Path) -> str:
    """A page with the tables that the results say.

    Raises:
        KeyError: a comment names no table.
    """
    benches = [bench_of(name) for name in names()]
    rows = {bench.name: record.read(results / f"{bench.name}.jsonl") for bench in benches}
    tables = {bench.name: _of_bench(bench, rows[bench.name]) for bench in benches}
    tables["headlines"] = _headlines(benches, rows)
    return _TABLE.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n\n{found[3]}", text)


def _of_bench(bench: Bench, rows: Sequence[Row]) -> str:
    """Its metrics with their meanings, and a table for each machine class."""
    return "\n\n".join(_parts(bench, rows)) or "No run is stored."


def _parts(bench: Bench, rows: Sequence[Row]) -> Iterator[str]:
    for name in sorted({row["machine_class"] for row in rows}):
        own = [row for row in rows if row["machine_class"] == name]
        yield f"On {name} ({own[0]['hardware']['memory_gib']:.0f} GiB), with {_libraries(own[0])}:"
        yield table.markdown(bench, own)


def _libraries(row: Row) -> str:
    """The libraries that decide about speed."""
    named = ("hybridrl", "torch", "megatron-core", "sglang")
    return ", ".join(f"{name} {row['versions'][name]}" for name in named if name in row["versions"])


def _headlines(benches: Sequence[Bench], rows: Mapping[str, Sequence[Row]]) -> str:
    """The numbers of the README: our own, of the machine class that was measured most."""
    classes = [row["machine_class"] for own in rows.values() for row in own]
    if not classes:
        return "No run is stored."
    common = max(sorted(set(classes)), key=classes.count)
    ours = [
        (bench, [r for r in rows[bench.name] if r["machine_class"] == common and r["contestant"] == OURS])
        for bench in benches
    ]
    return f"Measured on {common}:\n\n{table.headlines(ours)}"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
