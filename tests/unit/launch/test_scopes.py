"""The documentation says what each command leaves out of the verdict."""

from pathlib import Path

from hybridrl.errors import Absence, AbsentDataError
from hybridrl.launch.verdict import SCOPES

PLAN = Path(__file__).parents[3] / "docs" / "plan.md"


def test_the_documentation_has_every_scope_as_it_is() -> None:
    devices = {
        "here": "this machine's",
        "as named": "those that the config names, else this machine's",
        "elsewhere": "no question",
    }
    absent = {(): "refused", (AbsentDataError,): "data may be anywhere", (Absence,): "told, not refused"}
    rows = [
        f"| {name} | {devices[scope.devices]} | {absent[scope.absent]} | {scope.why} |"
        for name, scope in SCOPES.items()
    ]
    assert len({scope.why for scope in SCOPES.values()}) == len(SCOPES)
    written = PLAN.read_text("utf-8").splitlines()
    start = written.index("| scope | GPUs and memory | files that are not here | why |")
    assert written[start + 2 : start + 2 + len(rows) + 1] == [*rows, ""]
