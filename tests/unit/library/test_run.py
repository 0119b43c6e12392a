"""hybridrl.open on fakes of engines and ranks; nothing between them and the caller is replaced."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import controller_fakes
import documented
import pytest

import hybridrl
from hybridrl.config.files import atomic_write
from hybridrl.controller.roles import Roles
from hybridrl.errors import ConfigErrors
from hybridrl.launch import local
from hybridrl.library import run as library
from hybridrl.library.run import overrides_of


class RunOnFakes(local.RLRun):
    world: controller_fakes.World

    @contextlib.contextmanager
    def start_ray(self) -> Iterator[None]:
        yield None

    @contextlib.asynccontextmanager
    async def workers(self) -> AsyncIterator[tuple[object, Roles]]:
        world = RunOnFakes.world = controller_fakes.World()
        yield world, replace(world.roles(), observe=self.observe, prompts=self._prepared.train)


@pytest.fixture(autouse=True)
def on_fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "my.yaml", controller_fakes.CONFIG)
    rows = [json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) for i in range(8)]
    atomic_write(tmp_path / "prompts.jsonl", "\n".join(rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library, "RLRun", RunOnFakes)


def step(run) -> dict[str, float]:
    groups = run.sample(run.prompts())
    run.score(groups)
    metrics = run.train_step(groups)
    run.push_weights()
    return metrics


def records() -> list[dict]:
    return [json.loads(line) for line in Path("out/first/metrics.jsonl").read_text().splitlines()]


def test_a_loop_of_ones_own_leaves_what_a_run_leaves() -> None:
    with hybridrl.open("my.yaml", run={"steps": 2}) as run:
        assert run.config.run.steps == 2
        metrics = [step(run)["critic/score/mean"] for _ in range(2)]
        assert run.step == 2
    assert metrics == [0.5, 0.5]
    assert [(r["step"], r["critic/score/mean"], r["sync/checksum_ok"]) for r in records()] == [
        (1, 0.5, 1.0),
        (2, 0.5, 1.0),
    ]
    assert all(r["timing_s/step"] >= r["timing_s/gen"] for r in records())
    left = {path.name for path in Path("out/first").iterdir()}
    assert {"summary.json", "report.html", "reward.png", "resolved.yaml"} <= left


def test_a_step_whose_weights_were_not_pushed_is_written_too() -> None:
    with hybridrl.open("my.yaml") as run:
        groups = run.sample(run.prompts())
        run.score(groups)
        run.train_step(groups)
    (record,) = records()
    assert record["step"] == 1 and "sync/time_s" not in record


def test_fit_is_the_loop_of_the_command() -> None:
    run = hybridrl.open("my.yaml")
    summary = run.fit()
    assert summary["steps"] == 3 and [r["step"] for r in records()] == [1, 2, 3]
    with pytest.raises(RuntimeError, match="the run is closed"):
        run.sample([])


def test_verbs_work_under_a_loop_that_runs() -> None:
    async def notebook() -> int:
        with hybridrl.open("my.yaml") as run:
            step(run)
            return run.step

    assert asyncio.run(notebook()) == 1


def test_a_wrong_config_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigErrors) as caught:
        hybridrl.open("my.yaml", run={"stepps": 2})
    assert "did you mean run.steps" in str(caught.value)


def test_an_error_in_the_block_leaves_no_summary() -> None:
    with pytest.raises(ZeroDivisionError), hybridrl.open("my.yaml") as run:
        step(run)
        1 / 0  # noqa: B018
    assert not Path("out/first/summary.json").exists() and len(records()) == 1


def test_the_loop_of_the_page_is_the_file_and_is_short() -> None:
    page, file = documented.ROOT / "docs" / "python.md", "docs/examples/own_loop.py"
    _, code = (documented.ROOT / file).read_text().split('"""\n\n', 1)
    _, _, shown = documented.shown_files(page)[file].partition("\n")  # its first line names the file
    assert shown.strip() == code.strip()
    assert len([line for line in code.splitlines() if line]) <= 15


def test_changes_are_overrides_by_key() -> None:
    changes = {
        "run": {"steps": 5, "name": "a b"},
        "algorithm": {"dynamic_sampling": {}},
        "reward": "exact_match",
    }
    assert list(overrides_of(changes)) == [
        "run.steps=5",
        'run.name="a b"',
        "algorithm.dynamic_sampling={}",
        'reward="exact_match"',
    ]
