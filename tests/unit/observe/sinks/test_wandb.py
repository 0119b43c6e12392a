"""A sink of W&B that was left before its thread came to open it."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from hybridrl.observe.sink import SinkRun
from hybridrl.observe.sinks.wandb import WandbSink


def test_a_sink_that_was_left_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "")  # put back afterwards
    monkeypatch.setenv("WANDB_SILENT", "")
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))  # has no init that could be called
    sink = WandbSink()
    sink.abandon()
    sink.open(SinkRun(folder=tmp_path, resume_step=None, config={}))
    assert sink.view(tmp_path).startswith("wandb sync")
