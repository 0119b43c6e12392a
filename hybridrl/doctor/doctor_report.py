"""The doctor's findings, as a table to read and as values for a program."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

Status = Literal["ok", "note", "missing"]
"""note: a run works without it, or slower; missing: no run can start."""


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    status: Status
    found: str
    fix: str = ""
    """The command or change that repairs it; empty when all is well."""


@dataclass(frozen=True, slots=True)
class Report:
    findings: tuple[Finding, ...]

    @property
    def can_run(self) -> bool:
        """Whether a run can start here."""
        return all(finding.status != "missing" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """{"can_run": bool, "findings": [{"name", "status", "found", "fix"}, ...]}.

        Names and their order are the same on all machines with GPUs, and the same on all machines without.
        """
        return {"can_run": self.can_run, "findings": [asdict(finding) for finding in self.findings]}

    def as_table(self) -> Table:
        marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[bold red]missing[/]"}
        table = Table(box=None, pad_edge=False, show_header=False)
        for finding in self.findings:
            fix = f"  [dim]->[/] {escape(finding.fix)}" if finding.fix else ""
            table.add_row(marks[finding.status], finding.name, f"{escape(finding.found)}{fix}")
        verdict = (
            "hybridrl launch configs/quickstart.yaml will work" if self.can_run else "a run cannot start yet"
        )
        table.add_row("", "", f"[bold]{verdict}[/]")
        return table
