"""Rewards of a user, in a module that only the scoring processes import."""

import itertools
import os
import textwrap

import pytest

from hybridrl.config.schema import RewardConfig
from hybridrl.rewards.pool import Scorer

_serial = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module and get its name."""

    def write(source):
        name = f"lab_{os.getpid()}_{next(_serial)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(tmp_path)
        return name

    return write


@pytest.fixture
def scorer():
    """Make scorers; every one is closed at the end."""
    made = []

    def make(name, **options):
        made.append(Scorer(RewardConfig(name=name, **options), where="my.yaml:9"))
        return made[-1]

    yield make
    for one in made:
        one.close()
