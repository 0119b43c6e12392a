"""What a certificate holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from hybridrl.verify.compare import Difference, blame
from hybridrl.verify.layouts import Row
from hybridrl.verify.measure import Measured


@dataclass(frozen=True, slots=True)
class Finding:
    """One row."""

    row: Row
    difference: Difference | None
    """None: it was not measured."""

    why: str = ""
    """Why not."""

    failed: bool = False
    """It differs, or a rank broke down while it was measured; a row that was left out has not failed."""

    @property
    def tried(self) -> bool:
        return self.failed or self.difference is not None


@dataclass(frozen=True, slots=True)
class Certificate:
    """All rows, and what follows from them."""

    model: str
    """In words, as is the batch."""

    batch: str
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
