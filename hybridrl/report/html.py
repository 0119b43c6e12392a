"""Small parts of a page: tables, sections, numbers with their names."""

from collections.abc import Iterable, Sequence

from hybridrl.report.text import escaped


def section(name: str, title: str, *body: str, about: str = "") -> str:
    """A part of the page that its contents list has; "" if there is nothing to show."""
    if not any(body):
        return ""
    told = f'<p class="about">{about}</p>' if about else ""
    head = f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{title}</h2>'
    return f"{head}{told}{''.join(body)}</section>"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> str:
    """A table; "" without rows. Cells are escaped.

    Args:
        numbers_from: the first column that has numbers, and is set flush right.
    """
    body = [_row(row, numbers_from) for row in rows]
    if not body:
        return ""
    titles = "".join(
        f'<th scope="col"{_side(i, numbers_from)}>{escaped(title)}</th>' for i, title in enumerate(head)
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escaped(caption)}"><table>'
        f"<caption>{escaped(caption)}</caption><thead><tr>{titles}</tr></thead><tbody>{''.join(body)}</tbody>"
        "</table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values, as a list of definitions."""
    shown = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{shown}</dl>' if shown else ""


def details(title: str, body: str) -> str:
    """A part that is closed until it is opened."""
    return f"<details><summary>{escaped(title)}</summary>{body}</details>" if body else ""


def _row(row: Sequence[str], numbers_from: int) -> str:
    first = f'<th scope="row">{escaped(row[0])}</th>'
    return (
        "<tr>"
        + first
        + "".join(f"<td{_side(i, numbers_from)}>{escaped(cell)}</td>" for i, cell in enumerate(row[1:], 1))
        + "</tr>"
    )


def _side(column: int, numbers_from: int) -> str:
    return ' class="number"' if column >= numbers_from else ""
