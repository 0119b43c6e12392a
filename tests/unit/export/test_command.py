"""Which checkpoint of a run becomes a model folder, and what is refused."""

from pathlib import Path

import pytest
from checkpoint_values import FILE, flip_a_byte, write_checkpoint

from hybridrl.errors import CheckpointError, RunFolderError
from hybridrl.export.command import export_adapters, export_run
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models import spec
from hybridrl.models.tiny import random_model
from hybridrl.trainer.checkpoints import named


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 2 and 4, whose model is in the folder `model` beside it."""
    random_model(tmp_path / "model", "llama", seed=1)
    run = tmp_path / "run"
    run.mkdir()
    config = (
        f"model: {tmp_path / 'model'}\ndata: {{train: t.jsonl}}\nreward: exact_match\nrun: {{name: run}}\n"
    )
    (run / "resolved.yaml").write_text(config)
    for step in (2, 4):
        save(run, step, MegatronLayout(spec.read(tmp_path / "model"), tp=2))
    return run


def save(run: Path, step: int, layout: MegatronLayout) -> None:
    write_checkpoint(named(run / "checkpoints", step), {"progress": {}}, layout)


def test_the_newest_is_taken(run: Path) -> None:
    exported = export_run(run, step=None, to=None)
    assert (exported.step, exported.passed_over) == (4, [])
    assert (run / "exports" / "step_000004" / "model.safetensors").exists()


def test_of_a_damaged_one_the_one_before_is_taken_and_said(run: Path) -> None:
    flip_a_byte(named(run / "checkpoints", 4) / FILE)
    exported = export_run(run, step=None, to=None)
    (text,) = exported.passed_over
    assert exported.step == 2 and exported.folder.name == "step_000002"
    assert "passed over" in text and f"{FILE} is damaged" in text
    assert named(run / "checkpoints", 4).exists()


def test_a_named_damaged_one_is_refused_and_so_is_a_run_that_has_no_other(run: Path) -> None:
    for step in (4, 2):
        flip_a_byte(named(run / "checkpoints", step) / FILE)
    for step, make in ((2, export_run), (None, export_run), (2, export_adapters), (None, export_adapters)):
        with pytest.raises(CheckpointError, match=f"{FILE} is damaged"):
            make(run, step=step, to=None)
    assert not (run / "exports").exists()


def test_damaged_adapters_are_passed_over_too(run: Path) -> None:
    whole = MegatronLayout(spec.read(run.with_name("model")), tp=2)
    adapters = AdapterLayout.on(whole, rank=4, alpha=8.0, targets=("qkv",))
    for step in (6, 8):
        save(run, step, adapters)
    flip_a_byte(named(run / "checkpoints", 8) / FILE)
    exported = export_adapters(run, step=None, to=None)
    assert exported.step == 6 and "step_000008 is passed over" in exported.passed_over[0]


def test_a_checkpoint_of_another_model_is_refused(run: Path) -> None:
    for path in run.with_name("model").iterdir():
        path.unlink()
    run.with_name("model").rmdir()
    random_model(run.with_name("model"), "llama", seed=1, intermediate_size=32)
    with pytest.raises(CheckpointError, match="ffn_size is 64 there, 32 here"):
        export_run(run, step=None, to=None)


@pytest.mark.parametrize("command", ["sft", "rm"])
def test_a_run_on_examples_is_told_from_one_of_reinforcement_learning(run: Path, command: str) -> None:
    field = {"sft": "response_field: response", "rm": "chosen_field: chosen"}[command]
    text = (
        f"model: m\ndata: {{train: t.jsonl, {field}}}\nbatch: {{examples_per_step: 2}}\nrun: {{name: run}}\n"
    )
    (run / "resolved.yaml").write_text(text)
    with pytest.raises(RunFolderError, match=f"a run of `hybridrl {command}`.*run/export"):
        export_run(run, step=None, to=None)


@pytest.mark.parametrize("make", [export_run, export_adapters])
@pytest.mark.parametrize("to", ["/proc/x", "/dev/null/x", f"/tmp/{'x' * 300}/y"])
def test_a_place_that_cannot_be_written_is_refused_before_checksums_are_read(
    run: Path, make, to: str
) -> None:
    flip_a_byte(named(run / "checkpoints", 4) / FILE)
    with pytest.raises(RunFolderError, match="cannot write") as refused:
        make(run, step=4, to=Path(to))
    assert refused.value.fix == "choose another folder with --to"


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": {"a": {}}}', '{"format": 2, "files": {}}'])
def test_a_record_of_another_shape_is_passed_over_or_refused(run: Path, text: str) -> None:
    (named(run / "checkpoints", 4) / "COMMITTED").write_text(text)
    if "format" in text:  # it lists no file, so that none is missing
        with pytest.raises(CheckpointError, match="COMMITTED has no layout"):
            export_run(run, step=None, to=None)
    else:
        assert export_run(run, step=None, to=None).step == 2
