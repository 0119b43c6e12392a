"""The contents of a certificate."""

from collections.abc import Sequence
from dataclasses import dataclass

from hybridrl.verify.compare import Difference, blame
from hybridrl.verify.layouts import Row
from hybridrl.verify.measure import Measured


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one row."""

    row: Row
    difference: Difference | None
    """Difference from the reference; None if the row was not measured."""

    why: str = ""
    """Why the row was not measured."""

    failed: bool = False
    """Whether it differs, or a rank failed while it was measured. A row that was left out has not failed."""

    @property
    def tried(self) -> bool:
        """Whether its measurement was started."""
        return self.failed or self.difference is not None


@dataclass(frozen=True, slots=True)
class Certificate:
    """All rows, and the conclusion from them."""

    model: str
    """Description of the model in words."""

    batch: str
    """Description of the batch in words."""

    tolerance: float
    reference: Measured
    findings: Sequence[Finding]

    @property
    def holds(self) -> bool:
        return not any(finding.failed for finding in self.findings)

    @property
    def blamed(self) -> list[str]:
        """Axes that break the equality."""
        return blame({f.row: not f.failed for f in self.findings if f.tried})
