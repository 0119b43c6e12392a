"""Says which kind of box holds on this machine: boxes run the code that a policy writes."""

from hybridrl.doctor.doctor_report import Finding
from hybridrl.sandbox.support import Support


def boxes(support: Support) -> Finding:
    """A run without such code needs no box, so that their lack is a note."""
    if support.kind is None:
        return Finding("boxes", "note", f"none: {support.why}", support.fix)
    if not support.weaker:
        return Finding("boxes", "ok", support.kind)
    found = f"{support.kind} alone: {'; '.join(support.weaker)}"
    return Finding(
        "boxes", "note", f"{found} (bubblewrap: {support.why})" if support.why else found, support.fix
    )
