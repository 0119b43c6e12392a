"""A writer that is killed at any moment leaves a whole checkpoint or none; a damaged one is found out."""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pytest
from checkpoint_values import DAMAGE, FILE, LAYOUT, flip_a_byte, write_checkpoint
from model_values import FAMILIES, WITH_TOWER, tiny

from hybridrl.errors import CheckpointError
from hybridrl.layout.adapters import AdapterLayout, present
from hybridrl.layout.fsdp import FSDPLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models.spec import from_config
from hybridrl.trainer import committed

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}
"""Python tells of these before it does them."""


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


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named(tmp_path: Path, kind: str) -> None:
    write_checkpoint(tmp_path / "now")
    committed.verify(tmp_path / "now")
    spoil, reason = DAMAGE[kind]
    spoil(tmp_path / "now" / FILE)
    with pytest.raises(CheckpointError, match=f"{FILE} {reason.split(':')[0]}|{FILE} has .* {reason}"):
        committed.verify(tmp_path / "now")


def test_ranks_that_share_the_reading_find_what_one_finds(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "now")
    flip_a_byte(tmp_path / "now" / FILE)
    record = committed.read(tmp_path / "now")  # its size is right
    shares = [committed.flaws(tmp_path / "now", record, rank=rank, num_ranks=3) for rank in range(3)]
    assert sum(shares, []) == committed.flaws(tmp_path / "now", record) != []


def test_a_record_that_says_something_else_than_was_written_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "now", {"progress": {"prompts": 1234}})
    path = tmp_path / "now" / committed.RECORD
    path.write_text(path.read_text().replace("1234", "1235"))
    with pytest.raises(CheckpointError, match="COMMITTED is damaged"):
        committed.read(tmp_path / "now")


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "null", "{}", "1", "not JSON", "", "[" * 100_000, '"text"', '{"files": []}'),
        *('{"files": {"a": {}}}', '{"files": {"a": null}}', '{"files": {"a": "3"}}', '{"files": {"a": [3]}}'),
    ],
)
def test_a_record_that_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    write_checkpoint(tmp_path / "now")
    (tmp_path / "now" / committed.RECORD).write_text(text)
    with pytest.raises(CheckpointError, match="COMMITTED is damaged: it is not (JSON|what a commit writes)"):
        committed.read(tmp_path / "now")


@pytest.mark.parametrize(
    "parts",
    [[], {}, {"policy": None}, {"policy": {"layout": []}}, {"policy": {"layout": {"spec": {"a": 1}}}}],
)
def test_a_record_without_a_layout_is_refused(tmp_path: Path, parts: Any) -> None:
    write_checkpoint(tmp_path / "now")
    with pytest.raises(CheckpointError, match="COMMITTED has no layout of its policy"):
        committed.layout({**committed.read(tmp_path / "now"), "parts": parts}, "policy")


def test_a_file_without_a_checksum_gets_one_and_a_lost_one_stops_the_commit(tmp_path: Path) -> None:
    for name in ("beside", "lost"):
        (tmp_path / f"{name}.tmp").mkdir()
        (tmp_path / f"{name}.tmp" / "notes").write_text("some")
    committed.commit(tmp_path / "beside.tmp", tmp_path / "beside", {}, {})
    flip_a_byte(tmp_path / "beside" / "notes")
    with pytest.raises(CheckpointError, match="notes is damaged"):
        committed.verify(tmp_path / "beside")
    with pytest.raises(CheckpointError, match="policy.0 went missing"):
        committed.commit(tmp_path / "lost.tmp", tmp_path / "lost", {}, {"policy.0": 1})
    assert not (tmp_path / "lost").exists()


def test_what_reads_back_otherwise_than_it_was_written_is_never_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "step_1")
    flush = os.fsync

    def failing_disk(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.name == FILE:
            flip_a_byte(path)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", failing_disk)
    with pytest.raises(CheckpointError, match="does not read back as it was written"):
        write_checkpoint(tmp_path / "step_2")
    assert not (tmp_path / "step_2").exists()
    committed.verify(tmp_path / "step_1")


@pytest.mark.parametrize("family", FAMILIES | WITH_TOWER)
@pytest.mark.parametrize("head", ["vocabulary", "value"])
def test_a_model_of_any_family_is_known_again(family: str, head: Literal["vocabulary", "value"]) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "long_factor": [1.0, 2.0]}
    model = replace(tiny(family), rope_scaling=scaling, windowed_layers=(0, 2), tied=False, head=head)
    whole = MegatronLayout(model, tp=2)
    targets = present(model)
    adapters = [AdapterLayout.on(whole, rank=4, alpha=8.0, targets=targets)] if targets else []
    for layout in (whole, *adapters):
        facts = json.loads(json.dumps({"parts": {"policy": {"layout": committed.layout_record(layout)}}}))
        committed.refuse_other_model(Path("now"), facts, model)
        with pytest.raises(CheckpointError, match="hidden_size is 6 there, 8 here"):
            committed.refuse_other_model(Path("now"), facts, replace(model, hidden_size=8))


def test_a_model_without_a_table_is_known_again() -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 16}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", **sizes, **ends}
    model, wider = (from_config(config | {"intermediate_size": n}, where="") for n in (12, 16))
    record = committed.layout_record(FSDPLayout(model, dp=2))
    facts = json.loads(json.dumps({"backend": "fsdp", "parts": {"policy": {"layout": record}}}))
    committed.refuse_other_model(Path("now"), facts, model)
    expected = r"mlp.gate_proj.weight is \(12, 8\) there, \(16, 8\) here"
    with pytest.raises(CheckpointError, match=expected):
        committed.refuse_other_model(Path("now"), facts, wider)


def test_the_layout_of_its_ranks_comes_back(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "now")
    assert committed.layout(committed.read(tmp_path / "now"), "policy") == LAYOUT
