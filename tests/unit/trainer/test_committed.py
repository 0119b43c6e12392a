"""A writer that is killed at any moment leaves a whole checkpoint or none; a damaged one is found out."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from layout_values import held_by
from model_values import tiny

from hybridrl.errors import CheckpointError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.reshard.rank_files import Kept, collect, write
from hybridrl.trainer import committed

LAYOUT = MegatronLayout(tiny(), tp=2)
PARTS = {"policy": {"layout": asdict(LAYOUT), "progress": {}}}
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}
"""Python tells of these before it does them."""


def write_checkpoint(folder: Path) -> None:
    """As the trainer's ranks do, one after the other."""
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for rank, tensors in enumerate(held_by(LAYOUT)):
        kept = [Kept(name, 0, {"weights": tensor.flatten()}) for name, tensor in tensors.items()]
        write(unfinished, "policy", rank, kept, {})
    files = collect(unfinished, "policy", LAYOUT.world_size)
    assert files is not None
    committed.commit(unfinished, folder, {"parts": PARTS}, files)


def is_killed_at(moment: int, work: Callable[[], None]) -> bool:
    """Do the work in a process that dies before its file operation number `moment`. False: it has fewer."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)
    left = moment

    def watch(event: str, arguments: object) -> None:
        nonlocal left
        if event in EVENTS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    work()
    os._exit(0)


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint_or_a_refused_one(tmp_path: Path) -> None:
    folders = (tmp_path / f"step_{moment}" for moment in count(1))
    whole = []
    for moment, folder in enumerate(folders, 1):
        if not is_killed_at(moment, partial(write_checkpoint, folder)):
            break
        whole.append(folder.exists())
        if not folder.exists():
            with pytest.raises(CheckpointError, match="no COMMITTED"):
                committed.read(folder)
            write_checkpoint(folder)  # as the run does that goes on
        committed.verify(folder)
    assert len(whole) > 15 and whole == sorted(whole) and whole[-1]


def test_every_format_but_this_one_is_refused_by_its_number(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "now")
    committed.refuse_other_format(tmp_path / "now", committed.read(tmp_path / "now"))
    record = json.loads((tmp_path / "now" / "COMMITTED").read_text())
    sizes = {name: of_file["bytes"] for name, of_file in record["files"].items()}
    (tmp_path / "now" / "COMMITTED").write_text(json.dumps({"files": sizes}))  # as format 1 was
    old = committed.read(tmp_path / "now")
    with pytest.raises(CheckpointError, match="has format 1, this version of hybridrl reads 2"):
        committed.refuse_other_format(tmp_path / "now", old)


def test_a_damaged_byte_is_found_out(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "now")
    committed.verify(tmp_path / "now")
    with (tmp_path / "now" / "policy.00001.safetensors").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"?")
    committed.read(tmp_path / "now")  # its size is right
    with pytest.raises(CheckpointError, match="policy.00001.safetensors is damaged"):
        committed.verify(tmp_path / "now")


def test_the_layout_of_its_ranks_comes_back(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "now")
    assert committed.layout(committed.read(tmp_path / "now"), "policy") == LAYOUT
