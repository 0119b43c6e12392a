"""Copies of checkpoints through fsspec: on its file system in memory, which is no folder, and on a folder."""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from checkpoint_values import FILE, write_checkpoint

from hybridrl.errors import CheckpointError, ConfigError
from hybridrl.trainer import committed
from hybridrl.trainer.checkpoints import Keep, critic_part, named, whole_checkpoints
from hybridrl.trainer.store import Mirror, Store, bring_back, refuse_unopenable


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    own = uuid.uuid4().hex  # the memory is that of the process
    return f"memory://{own}" if request.param == "memory" else f"file://{tmp_path}/store"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_checkpoint(named(folder / "checkpoints", 10))
    (folder / "resolved.yaml").write_text("run: {name: mine}\n")
    return folder


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "mine"
    shutil.copytree(written, folder)
    for step in (20, 30):
        shutil.copytree(named(written / "checkpoints", 10), named(folder / "checkpoints", step))
    return folder


def put_all(store: Store, run: Path) -> None:
    for checkpoint in whole_checkpoints(run / "checkpoints"):
        store.put(checkpoint, {"resolved.yaml": run / "resolved.yaml", "absent": run / "absent"})


def spoil(store: Store, step: int) -> None:
    files, root = fsspec.url_to_fs(store.url)
    place = f"{root}/step_{step:06d}/{FILE}"
    content = bytearray(files.cat_file(place))
    content[len(content) // 2] ^= 0xFF
    files.pipe_file(place, bytes(content))


def test_what_comes_back_is_what_was_copied(url: str, run: Path, tmp_path: Path) -> None:
    put_all(Store(url, "mine"), run)
    store, other = Store(url, "mine"), tmp_path / "other"
    assert store.steps() == [10, 20, 30] and Store(url, "yours").steps() == []
    assert bring_back(store, other, other / "checkpoints", print) == 30
    (back,) = whole_checkpoints(other / "checkpoints")
    assert committed.verify(back.folder) == committed.verify(named(run / "checkpoints", 30))
    assert (other / "resolved.yaml").read_text() == "run: {name: mine}\n"
    assert bring_back(store, other, other / "checkpoints", print) is None


def test_the_part_of_a_critic_comes_with_its_checkpoint(url: str, run: Path, tmp_path: Path) -> None:
    write_checkpoint(named(run / "checkpoints", 40), {"critic_apart": True})
    write_checkpoint(critic_part(named(run / "checkpoints", 40)))
    store, other = Store(url, "mine"), tmp_path / "other"
    put_all(store, run)
    assert bring_back(store, other, other / "checkpoints", print) == 40
    assert [one.step for one in whole_checkpoints(other / "checkpoints")] == [40]


def test_a_damaged_copy_is_passed_over(url: str, run: Path, tmp_path: Path) -> None:
    store, other, said = Store(url, "mine"), tmp_path / "other", list[str]()
    put_all(store, run)
    spoil(store, 30)
    assert bring_back(store, other, other / "checkpoints", said.append) == 20
    assert "the copy of step 30" in said[0] and FILE in said[0] and "is damaged" in said[0]
    assert [path.name for path in (other / "checkpoints").iterdir()] == ["step_000020"]
    assert store.steps() == [10, 20]
    put_all(store, run)
    assert store.steps() == [10, 20, 30]


def test_a_copy_without_its_record_is_none(url: str, run: Path) -> None:
    store = Store(url, "mine")
    put_all(store, run)
    files, root = fsspec.url_to_fs(store.url)
    files.rm_file(f"{root}/step_000030/COMMITTED")
    assert store.steps() == [10, 20]
    put_all(store, run)
    assert store.steps() == [10, 20, 30]


def test_a_step_that_was_taken_again_replaces_its_copy(url: str, run: Path, tmp_path: Path) -> None:
    store, other = Store(url, "mine"), tmp_path / "other"
    put_all(store, run)
    again = tmp_path / "again" / "checkpoints"
    write_checkpoint(named(again, 30), {"step": 30, "again": True})
    put_all(store, again.parent)
    assert bring_back(store, other, other / "checkpoints", print) == 30
    assert whole_checkpoints(other / "checkpoints")[0].record["again"] is True


def test_old_copies_go_and_those_of_keep_every_stay(url: str, run: Path) -> None:
    store = Store(url, "mine")
    put_all(store, run)
    store.delete_old(Keep(1, every=10))
    assert store.steps() == [10, 20, 30]
    store.delete_old(Keep(1, every=20))
    assert store.steps() == [20, 30]
    store.delete_old(Keep(1))
    assert store.steps() == [30]
    files, root = fsspec.url_to_fs(store.url)
    assert not files.exists(f"{root}/step_000010")


@pytest.fixture
def mirrors() -> Iterator[list[Mirror]]:
    found: list[Mirror] = []
    yield found
    for mirror in found:
        mirror.close()


def test_a_mirror_copies_what_is_committed_and_keeps_the_newest(
    url: str, run: Path, mirrors: list[Mirror]
) -> None:
    store, checkpoints = Store(url, "mine"), run / "checkpoints"
    mirrors.append(mirror := Mirror(store, checkpoints, Keep(2), {}, None, every_s=60))
    mirror.flush()
    assert store.steps() == [20, 30]
    write_checkpoint(named(checkpoints, 40))
    mirror.flush()
    mirror.raise_failure()
    assert store.steps() == [30, 40]


class Full(Store):
    def put(self, checkpoint: object, run: object) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_store_that_takes_nothing_ends_the_run_or_is_said(
    url: str, run: Path, mirrors: list[Mirror], goes_on: bool
) -> None:
    said: list[str] = []
    warn = (lambda kind, text: said.append(text)) if goes_on else None
    store = Full(url, "mine")
    mirrors.append(mirror := Mirror(store, run / "checkpoints", Keep(2), {}, warn, every_s=0.01, pause_s=0))
    with pytest.raises(CheckpointError, match="step 30 was not copied to .*No space left"):
        mirror.flush()
    if goes_on:
        mirror.raise_failure()
        assert "the checkpoint of step 10 was not copied" in said[0]
    else:
        with pytest.raises(CheckpointError, match="run.store"):
            mirror.raise_failure()


@pytest.mark.parametrize(
    ("url", "message"), [("s4://bucket/x", "Protocol not known: s4"), ("adl://x", "adlfs|[Ii]nstall")]
)
def test_a_url_that_cannot_be_opened_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        refuse_unopenable(url)
    assert refused.value.where == "run.store" and "s3fs" in refused.value.fix
