"""When a run writes step bundles, and that it goes on where it cannot."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from observe_values import batch, trajectory

from hybridrl.batch import Batch, Minibatch, TokenBlock
from hybridrl.config.bundle import BundleConfig
from hybridrl.controller.roles import PolicyTrainer
from hybridrl.errors import CheckpointError, NonFiniteError
from hybridrl.trainer import bundles, committed
from hybridrl.types import StepReport
from hybridrl.workers.bundling import BundlingTrainer

MINIBATCHES = [Minibatch(index, (((0, 1),),), 4, 2) for index in range(2)]


@dataclass
class Trainer:
    """A trainer whose optimizer steps end as they are told to, and its own workers."""

    ends: Sequence[str] = ("done", "done")
    is_full: bool = False
    calls: list[str] = field(default_factory=list)

    @property
    def workers(self) -> "Trainer":
        return self

    async def all(self, method: str, *args: Any) -> list[Any]:
        self.calls.append(method)
        if method == "save_state":
            if self.is_full:
                raise CheckpointError("no space left on device")
            args[0].mkdir()
            committed.commit(args[0], args[0].with_name("state2"), {}, {})
            args[0].with_name("state2").rename(args[0])
        return [({"position": np.array([1, 1], np.int32)}, {"weight": 5})]

    async def load(self, batch: Batch, minibatches: Sequence[Minibatch]) -> dict[str, float]:
        self.calls.append("load")
        return {"entropy": 1.5}

    async def step(self, index: int) -> StepReport:
        self.calls.append(f"step {index}")
        if self.ends[index] == "raised":
            raise NonFiniteError("loss nan", where="step 6")
        skipped = {"actor/skipped": float(self.ends[index] == "skipped")}
        return StepReport(6, 0.5, 0.25, 1e-3, skipped)


def play(tmp_path: Path, inner: Trainer, **choice: Any) -> list[str]:
    """Take the optimizer steps of step 6; returns the warnings."""
    (tmp_path / "resolved.yaml").write_text("run: {}\n")
    warned: list[str] = []
    made: Any = BundlingTrainer(
        inner,  # pyright: ignore[reportArgumentType]
        BundleConfig(**choice),
        tmp_path / "bundles",
        tmp_path / "resolved.yaml",
        lambda kind, text: warned.append(text),
    )
    whole = batch([[trajectory(0.0), trajectory(1.0)]], step=6)
    whole.row_N = np.array([0, 1])
    whole.blocks = [TokenBlock.from_answers([[1], [2]], [[3], [4]], [[-1.0], [-2.0]], 5)]

    async def steps() -> None:
        await made.load(whole, MINIBATCHES)
        for index in range(2):
            await made.step(index)

    asyncio.run(steps())
    return warned


def written(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "bundles").glob("*"))


def test_one_is_written_every_so_often_with_the_state_of_before(tmp_path: Path) -> None:
    inner = Trainer()
    assert play(tmp_path, inner, every=3) == []
    assert inner.calls == ["save_state", "load", "step 0", "step 1", "recorded"]
    found = bundles.read(tmp_path / "bundles" / "step_000006")
    assert (found.step, found.first, found.columns_are_given, found.why) == (6, 0, False, "")
    assert [step["loss"] for step in found.found.steps] == [0.5, 0.5]
    assert found.found.loaded == {"entropy": 1.5} and found.found.weights == ({"weight": 5},)
    assert found.batch.blocks[0].token_T.tolist() == [1, 3, 2, 4]
    assert found.batch.minibatches == tuple(MINIBATCHES)
    assert written(tmp_path) == ["step_000006"]


def test_other_steps_cost_nothing(tmp_path: Path) -> None:
    inner = Trainer()
    play(tmp_path, inner, every=4)
    assert inner.calls == ["load", "step 0", "step 1"] and written(tmp_path) == []


def test_a_step_that_ends_the_run_names_its_bundle(tmp_path: Path) -> None:
    inner = Trainer(ends=("done", "raised"))
    with pytest.raises(NonFiniteError, match="loss nan") as raised:
        play(tmp_path, inner)
    assert raised.value.fix == f"hybridrl replay {tmp_path / 'bundles' / 'step_000006'} takes it again"
    found = bundles.read(tmp_path / "bundles" / "step_000006")
    assert (found.first, found.columns_are_given, found.why) == (1, True, "loss nan")
    assert found.found.steps == ({"error": "loss nan"},)


def test_one_that_was_asked_for_begins_with_the_first_step_even_then(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        play(tmp_path, Trainer(ends=("done", "raised")), every=6)
    found = bundles.read(tmp_path / "bundles" / "step_000006")
    assert (found.first, found.columns_are_given, len(found.found.steps)) == (0, False, 2)


def test_a_skipped_step_has_one_and_the_run_goes_on(tmp_path: Path) -> None:
    inner = Trainer(ends=("skipped", "done"))
    assert play(tmp_path, inner) == [] and inner.calls[-1] == "step 1"
    found = bundles.read(tmp_path / "bundles" / "step_000006")
    assert found.why == "the step was skipped" and found.found.steps[0]["metrics"] == {"actor/skipped": 1.0}


def test_nothing_is_written_where_nobody_asked(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError) as raised:
        play(tmp_path, Trainer(ends=("raised", "done")), on_error=False)
    assert raised.value.fix == "" and written(tmp_path) == []


@pytest.mark.parametrize(("ends", "choice"), [("raised", {}), ("skipped", {}), ("done", {"every": 6})])
def test_a_full_disk_costs_the_bundle_and_changes_nothing_else(
    tmp_path: Path, ends: str, choice: dict[str, Any]
) -> None:
    inner = Trainer(ends=(ends, "done"), is_full=True)
    if ends == "raised":
        with pytest.raises(NonFiniteError, match="loss nan") as raised:
            play(tmp_path, inner, **choice)
        assert raised.value.fix == ""
        return
    (warned,) = play(tmp_path, inner, **choice)
    assert "step_000006 was not written: no space left on device" in warned
    assert inner.calls[-1] == "step 1"


def test_it_does_all_that_the_loop_asks_of_a_trainer() -> None:
    asked = {name for name in vars(PolicyTrainer) if not name.startswith("_")}
    assert asked and asked <= set(dir(BundlingTrainer))
