"""The certificate as text and as one JSON object."""

from collections.abc import Iterable, Iterator
from typing import Any

from hybridrl.verify.findings import Certificate, Finding
from hybridrl.wording import counted

COLUMNS = f"{'row':<22} {'loss':>9} {'grad norm':>9} {'gradient':>9}  worst parameter"


def line(finding: Finding) -> str:
    """One row of the table."""
    found = finding.difference
    if found is None:
        return f"{finding.row.name:<22} {'failed' if finding.failed else 'left out'}: {finding.why}"
    numbers = " ".join(f"{value:>9.1e}" for value in (found.loss, found.grad_norm, found.gradient))
    mark = "  DIFFERS" if finding.failed else ""
    return f"{finding.row.name:<22} {numbers}  {found.parameter or '-'}{mark}"


def left_out(findings: Iterable[Finding]) -> Iterator[str]:
    """A line for each reason why rows were not measured, with their layouts."""
    names: dict[str, dict[str, None]] = {}
    for finding in findings:
        names.setdefault(finding.why, {})[finding.row.name.partition(",")[0]] = None
    for why, layouts in names.items():
        yield f"left out: {', '.join(layouts)}  ({why})"


def verdicts(certificate: Certificate) -> Iterator[tuple[str, str]]:
    """(axis, verdict on it) for every axis of the rows."""
    for axis in dict.fromkeys(a for f in certificate.findings for a in sorted(f.row.axes)):
        rows = [f for f in certificate.findings if axis in f.row.axes and f.tried]
        equal = [f.difference.largest for f in rows if f.difference and not f.failed]
        blamed = any(axis in name.split(" with ") for name in certificate.blamed)
        parts = [f"equal in {_rows(len(equal))}, at most {max(equal):.1e} apart"] if equal else []
        if len(equal) < len(rows):
            parts.append(f"{_rows(len(rows) - len(equal))} not" + ("" if blamed else ", by another axis"))
        yield axis, "; ".join(parts) or "not shown: every row was left out"


def _rows(count: int) -> str:
    return counted(count, "row")


def conclusion(certificate: Certificate) -> str:
    """The text below the table."""
    lines = [f"{axis:<13} {text}" for axis, text in verdicts(certificate)]
    if certificate.holds:
        last = f"invariant: loss and gradients are equal to {certificate.tolerance:g}, relative"
    else:
        last = f"not invariant: the result depends on {', '.join(certificate.blamed)}"
    return "\n".join(["", *lines, "", last])


def as_dict(certificate: Certificate) -> dict[str, Any]:
    """The certificate as a JSON object."""
    return {
        "holds": certificate.holds,
        "blamed": certificate.blamed,
        "tolerance": certificate.tolerance,
        "model": certificate.model,
        "batch": certificate.batch,
        "reference": {"loss": certificate.reference.loss, "grad_norm": certificate.reference.grad_norm},
        "axes": dict(verdicts(certificate)),
        "rows": [_row(finding) for finding in certificate.findings],
    }


def _row(finding: Finding) -> dict[str, Any]:
    found = finding.difference
    shown = {"row": finding.row.name, "axes": sorted(finding.row.axes), "failed": finding.failed}
    if found is None:
        return shown | {"why": finding.why}
    return shown | {
        "loss": found.loss,
        "grad_norm": found.grad_norm,
        "gradient": found.gradient,
        "parameter": found.parameter,
    }
