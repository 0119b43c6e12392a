"""The changelog has the form of Keep a Changelog, and knows the version and every renamed key."""

import re
from pathlib import Path

from hybridrl import __version__
from hybridrl.config.renamed import RENAMED

TEXT = (Path(__file__).parents[2] / "CHANGELOG.md").read_text("utf-8")
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def versions() -> list[str]:
    return re.findall(r"^## \[(\S+?)\](?: - \d{4}-\d\d-\d\d)?$", TEXT, re.MULTILINE)


def test_versions_are_headings_the_newest_first() -> None:
    assert versions()[0] == "Unreleased" and versions()[1] == __version__
    assert len(versions()) == len(re.findall(r"^## ", TEXT, re.MULTILINE))


def test_changes_are_of_the_known_kinds() -> None:
    assert set(re.findall(r"^### (.+)$", TEXT, re.MULTILINE)) <= KINDS


def test_lines_are_short() -> None:
    assert max(map(len, TEXT.splitlines())) <= 100


def test_every_renamed_key_stands_under_its_version() -> None:
    parts = dict(zip(versions(), re.split(r"^## .*$", TEXT, flags=re.MULTILINE)[1:], strict=True))
    assert [entry.old for entry in RENAMED if f"`{entry.old}`" not in parts.get(entry.since, "")] == []
