"""Fixtures of tests with real engines."""

import pytest
from engine_kinds import TESTED, case_of


@pytest.fixture(scope="module", params=list(TESTED))
def kind(request):
    """Every kind of engine in turn: all tests of a module for one kind, then for the next."""
    return case_of(request.param)
