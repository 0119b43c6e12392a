"""Results as lines of a terminal, and as tables of a page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hybridrl.bench.base import OURS, Bench
from hybridrl.bench.record import Row


def lines(bench: Bench, row: Row) -> Iterator[tuple[str, str]]:
    """Heading and text of each metric of one row."""
    who = "" if row["contestant"] == OURS else f" by {row['contestant']}"
    yield "bench", f"{bench.name}, {row['case']}{who}, {row['machine_class']}"
    cells = {name: number(value) for name, value in row["metrics"].items()}
    left, middle = (max(map(len, texts), default=0) for texts in (cells, cells.values()))
    for name, text in cells.items():
        yield "", f"{name:<{left}}  {text:<{middle}}  {bench.metrics[name].meaning}"


def number(value: Mapping[str, Any]) -> str:
    """Median with its unit, and the quartiles if there are several values."""
    unit = "" if value["unit"] in ("x", "share") else f" {value['unit']}"
    ratio = " x" if value["unit"] == "x" else ""
    text = f"{digits(value['median'])}{ratio}{unit}"
    if value["repeats"] < 2 or value["quartile_1"] == value["quartile_3"]:
        return text
    return f"{text} ({digits(value['quartile_1'])} to {digits(value['quartile_3'])})"


def digits(value: float) -> str:
    """Three digits that mean something, without an exponent up to millions."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):g}" if abs(value) >= 1e-4 else f"{value:.2g}"


_MOST_COLUMNS = 5
"""Cases that a page shows side by side."""


def markdown(bench: Bench, rows: Sequence[Row]) -> str:
    """A table of all metrics of one machine class: a row for each metric and a column for each case, or with
    many cases the other way round, and the meanings below."""
    ordered = _in_order(bench, rows)
    used = [name for name in bench.metrics if any(name in row["metrics"] for row in ordered)]
    if len(ordered) <= _MOST_COLUMNS:
        body = [
            [f"`{name}`", *(_cell(row, name) for row in ordered), bench.metrics[name].meaning]
            for name in used
        ]
        return _table(["metric", *map(_head, ordered), "meaning"], body)
    body = [[_head(row), *(_cell(row, name) for name in used)] for row in ordered]
    meanings = "\n".join(f"- `{name}`: {bench.metrics[name].meaning}" for name in used)
    return f"{_table(['case', *(f'`{name}`' for name in used)], body)}\n\n{meanings}"


def _cell(row: Row, name: str) -> str:
    return number(row["metrics"][name]) if name in row["metrics"] else ""


def headlines(benches: Iterable[tuple[Bench, Sequence[Row]]]) -> str:
    """The README's table: the metrics that have a headline, each with its cases."""
    found = []
    for bench, rows in benches:
        shown = [row for row in _in_order(bench, rows) if row["case"] in _in_readme(bench)]
        for name, metric in bench.metrics.items():
            values = [
                f"{number(row['metrics'][name])} ({row['case']})" for row in shown if name in row["metrics"]
            ]
            if metric.headline and values:
                found.append([metric.headline, "; ".join(values), f"`hybridrl bench {bench.name}`"])
    return _table(["What", "Measured", "Command"], found)


def _in_order(bench: Bench, rows: Sequence[Row]) -> list[Row]:
    """Rows in the order of the cases, our own before those of peers."""
    place = {case.name: i for i, case in enumerate(bench.cases)}
    return sorted(rows, key=lambda row: (place[row["case"]], row["contestant"] != OURS, row["contestant"]))


def _in_readme(bench: Bench) -> set[str]:
    return {case.name for case in bench.cases if case.readme}


def _head(row: Row) -> str:
    return row["case"] if row["contestant"] == OURS else f"{row['case']}, {row['contestant']}"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))
