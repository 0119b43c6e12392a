"""Tests of boxes run where boxes of their kind can be made."""

import pytest
from box_kinds import need

NO_BOX = ("test_frames",)


@pytest.fixture(autouse=True)
def kind_can_be_made(request: pytest.FixtureRequest) -> None:
    if request.module.__name__.rpartition(".")[2] not in NO_BOX:
        callspec = getattr(request.node, "callspec", None)
        need(callspec.params.get("kind", "bubblewrap") if callspec else "bubblewrap")
