"""The resolved config says everything, loads again, and goes on as a run only where that changes nothing
learnt.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hybridrl.config.load import LoadedConfig, load, values
from hybridrl.config.run_folder import MAY_CHANGE, MAY_CHANGE_BELOW, RunFolder, as_yaml, path_of, step_of
from hybridrl.errors import ConfigErrors, RunFolderError

TEXT = """\
model: models/tiny
data: {train: {task: sums, sizes: [1, {a: '1e5'}]}}
reward: {name: exact, strip: true}
algorithm: {preset: reinforce_plus_plus, loss: {clip_high: 0.3}}
actor: {optimizer: {lr: 5e-4}}
"""


@pytest.fixture
def config(tmp_path: Path):
    """The config of a run in a folder of its own, with overrides."""
    file = tmp_path / "my.yaml"
    file.write_text(f"{TEXT}run: {{name: first, folder: {tmp_path}/runs}}\n")
    return lambda *overrides: load(file, overrides)


def test_a_resolved_config_loads_as_the_same_config(config, tmp_path: Path) -> None:
    loaded = config("run.seed=7")
    again = tmp_path / "resolved.yaml"
    again.write_text(as_yaml(loaded))
    assert load(again).config == loaded.config


def test_every_value_stands_in_it_with_its_origin(config) -> None:
    loaded = config("run.seed=7")
    lines = as_yaml(loaded).splitlines()
    assert sum("# " in line for line in lines[1:]) == len(values(loaded.config))
    assert any(re.fullmatch(r"  seed: 7 +# command line", line) for line in lines)
    assert any(re.fullmatch(r"    lr: 0.0005 +# .*/my.yaml:5", line) for line in lines)
    assert any(re.fullmatch(r"    estimator: k1 +# preset reinforce_plus_plus", line) for line in lines)


def test_a_long_path_of_the_config_fits_a_narrow_screen(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 60)
    folder.mkdir()
    file = folder / "my.yaml"
    file.write_text(f"{TEXT}run: {{name: first}}\n")
    loaded = load(file)
    shown = as_yaml(loaded, 60)
    again = tmp_path / "resolved.yaml"
    again.write_text(shown)
    assert load(again).config == loaded.config
    assert max(len(line) for line in shown.splitlines() if str(file) not in line) <= 60


def record(loaded: LoadedConfig, *steps: int) -> None:
    lines = [json.dumps({"kind": "step", "step": step}) + "\n" for step in steps]
    (path_of(loaded.config) / "metrics.jsonl").write_text("".join(lines))


def test_a_new_run_gets_its_folder(config) -> None:
    loaded = config()
    folder = RunFolder.create(loaded)
    assert folder.path == path_of(loaded.config)
    assert load(folder.path / "resolved.yaml").config == loaded.config


def test_a_run_is_never_overwritten(config) -> None:
    loaded = config()
    RunFolder.create(loaded).release()
    record(loaded, 0, 120)
    with pytest.raises(RunFolderError) as error:
        RunFolder.create(loaded)
    path = path_of(loaded.config)
    change = "--resume continues it, run.name=... starts another"
    assert str(error.value) == f"{path} already holds a run at step 120: {change}"


def test_a_checkpoint_alone_is_a_run(config) -> None:
    loaded = config()
    folder = RunFolder.create(loaded)
    (folder.path / "checkpoints/step_1").mkdir(parents=True)
    folder.release()
    with pytest.raises(RunFolderError, match="already holds a run"):
        RunFolder.create(loaded)


def test_a_launch_that_failed_at_once_leaves_no_run(config) -> None:
    loaded = config()
    folder = RunFolder.create(loaded)
    (folder.path / "metrics.jsonl").touch()
    (folder.path / "model").mkdir()
    folder.release()
    again = RunFolder.create(config("run.seed=1"))
    assert load(again.path / "resolved.yaml").config.run.seed == 1
    assert not (again.path / "metrics.jsonl").exists()
    assert (again.path / "model").is_dir()


def test_a_line_that_a_crash_cut_short_is_no_step(config) -> None:
    loaded = config()
    RunFolder.create(loaded)
    path = path_of(loaded.config) / "metrics.jsonl"
    path.write_text('{"kind": "step", "step": 3}\n{"kind": "step", "st')
    assert step_of(path.parent) == 3


def test_only_one_process_holds_a_folder(config, tmp_path: Path) -> None:
    loaded = config()
    folder = RunFolder.create(loaded)
    code = f"""
from hybridrl.config.load import load
from hybridrl.config.run_folder import RunFolder
RunFolder.create(load({str(tmp_path / "my.yaml")!r}))
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is in use by process" in other.stderr
    folder.release()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_nothing_to_resume_is_said(config) -> None:
    with pytest.raises(RunFolderError, match="holds no run to resume: launch without --resume"):
        RunFolder.open_for_resume(config())
    assert not path_of(config().config).exists()


@pytest.mark.parametrize(
    "override",
    ["run.steps=200", "run.save_every=5", "run.export=false", "reward.timeout_s=99.0", "actor.backend=fsdp"],
)
def test_a_resume_may_look_longer_or_closer(config, override: str) -> None:
    RunFolder.create(config()).release()
    folder = RunFolder.open_for_resume(config(override))
    assert load(folder.path / "resolved.yaml").config == config(override).config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "actor.optimizer.lr=1e-3",
            "actor.optimizer.lr = 0.001, the run to resume has 0.0005  (command line)",
        ),
        ("run.seed=1", "run.seed = 1, the run to resume has 0"),
        ("data.train.sizes=[2]", "data.train.sizes = [2], the run to resume has [1, {a: '1e5'}]"),
        ("reward.extra=1", "reward.extra = 1, the run to resume has unset"),
        ("actor.optimizer.betas=[0.8, 0.9]", "betas = [0.8, 0.9], the run to resume has [0.9, 0.95]"),
    ],
)
def test_a_resume_that_would_learn_something_else_is_refused(config, override: str, message: str) -> None:
    RunFolder.create(config()).release()
    with pytest.raises(ConfigErrors) as error:
        RunFolder.open_for_resume(config(override))
    assert message in str(error.value)
    RunFolder.open_for_resume(config())  # the refusal left the folder free and its config as it was


def test_a_schedule_over_the_run_fixes_its_length(config) -> None:
    cosine = "actor.optimizer.schedule=cosine"
    RunFolder.create(config(cosine)).release()
    with pytest.raises(ConfigErrors, match="run.steps = 200, the run to resume has 100 and its cosine"):
        RunFolder.open_for_resume(config(cosine, "run.steps=200"))


def test_keys_that_may_change_exist(config) -> None:
    names = dict(values(config().config)).keys()
    assert names >= MAY_CHANGE
    assert all(any(name.startswith(f"{section}.") for name in names) for section in MAY_CHANGE_BELOW)


def test_a_run_goes_on_in_another_partition(config) -> None:
    RunFolder.create(config("cluster.slurm.partition=a")).release()
    RunFolder.open_for_resume(config("cluster.slurm={partition: b, sbatch: [--qos=x]}")).release()


def test_a_folder_that_cannot_be_written_is_said(config, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot write .*: Not a directory: set run.folder"):
        RunFolder.create(config(f"run.folder={tmp_path}/file"))
