"""When a run starts again by itself, and when it does not."""

from pathlib import Path

import pytest
from checkpoint_values import write_checkpoint

from hybridrl.errors import DeadlineError, EngineLostError, HybridRLError, RewardError, WorkerError
from hybridrl.faults import parse
from hybridrl.launch.restarts import Restarts
from hybridrl.launch.shape import RunFiles
from hybridrl.observe.doing import Doing
from hybridrl.trainer.checkpoints import named

DIED = WorkerError("trainer rank 1 died during 'step'")


class Run:
    """Starts that save and fail as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, most: int) -> None:
        self.saved, self.said, self.resumes, self.faults = None, [], [], []
        monkeypatch.setattr(Restarts, "_saved", lambda _: self.saved)
        self.folder = folder
        self.restarts = Restarts(most, RunFiles(folder), self.said.append, resume="never")

    def play(self, *ends: tuple[int | None, HybridRLError | None]) -> int:
        """Number of starts. Each end is the newest checkpoint by then, and the error."""
        faults = [parse(f"kill:trainer:0@step={step},phase=update") for step in (3, 5)]
        for start, (saved, error) in zip(self.restarts, ends, strict=False):
            self.resumes.append(start.resume)
            self.faults.append([fault.step for fault in start.left_of(faults)])
            with start:
                Doing(self.folder, lambda: [], lambda: 3, lambda: 2, every_s=60).close("")
                self.saved = saved
                if error is not None:
                    raise error
        return len(self.resumes)


@pytest.mark.parametrize("error", [DIED, DeadlineError("late")])
def test_a_run_whose_worker_died_or_hung_goes_on_from_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: HybridRLError
) -> None:
    run = Run(monkeypatch, tmp_path, most=2)
    assert run.play((2, error), (9, None)) == 2
    assert run.resumes == ["never", "required"] and run.faults == [[3, 5], [5]]
    assert run.said == [f"the run starts again from step 2, 1 further start without a new one: {error.what}"]


def test_starts_without_a_new_checkpoint_are_counted_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Run(monkeypatch, tmp_path, most=2)
    with pytest.raises(WorkerError):
        run.play((2, DIED), (4, DIED), (6, DIED), (6, DIED), (6, DIED), (6, None))
    assert len(run.resumes) == 5


@pytest.mark.parametrize(("most", "saved"), [(0, 2), (3, None)])
def test_without_the_key_or_a_checkpoint_the_run_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, most: int, saved: int | None
) -> None:
    run = Run(monkeypatch, tmp_path, most)
    with pytest.raises(WorkerError):
        run.play((saved, DIED), (9, None))
    assert len(run.resumes) == 1 and not run.said


def test_a_mistake_of_the_user_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run(monkeypatch, tmp_path, most=3)
    with pytest.raises(RewardError):
        run.play((2, RewardError("it raised")), (9, None))


def test_the_newest_checkpoint_is_that_of_the_run(tmp_path: Path) -> None:
    assert Restarts(1, RunFiles(tmp_path), print, resume="never")._saved() is None


def test_a_fault_that_an_evaluation_met_does_not_happen_again(tmp_path: Path) -> None:
    """After step 4 the weights of step 4 are evaluated; they are those whose answers step 5 trains on."""
    faults = [parse(text) for text in ("kill:reward@step=5,phase=reward", "kill:trainer@step=5,phase=update")]
    restarts = Restarts(1, RunFiles(tmp_path), lambda text: None, resume="never")
    write_checkpoint(named(tmp_path / "checkpoints", 3), {"progress": {}})
    with restarts:
        Doing(tmp_path, lambda: [("testing", 1.0)], lambda: 4, lambda: 4, every_s=60).close("")
        raise DIED
    assert [fault.target for fault in restarts.left_of(faults)] == ["trainer"]


def restarts_of(folder: Path, most: int, *steps: int) -> tuple[Restarts, list[str]]:
    """Restarts of a run with checkpoints of these steps, and what they say."""
    said: list[str] = []
    made = Restarts(most, RunFiles(folder), said.append, resume="never")
    for step in steps:
        write_checkpoint(named(folder / "checkpoints", step), {"progress": {}})
    return made, said


def test_the_engines_stay_the_first_time_after_a_checkpoint(tmp_path: Path) -> None:
    restarts, said = restarts_of(tmp_path, 3, 2)
    assert restarts.keeps_engines(WorkerError("the first"))
    assert not restarts.keeps_engines(WorkerError("the second"))
    with restarts:
        raise WorkerError("the second")
    write_checkpoint(named(tmp_path / "checkpoints", 3), {"progress": {}})
    assert restarts.keeps_engines(WorkerError("after another one"))
    assert said == [
        "trainer and reward start again from step 2, 2 further starts without a new one: the first",
        "the run starts again from step 2, 1 further start without a new one: the second",
        "trainer and reward start again from step 3, 2 further starts without a new one: after another one",
    ]


def test_if_the_engines_could_not_stay_the_run_starts_again_without_another_count(tmp_path: Path) -> None:
    restarts, said = restarts_of(tmp_path, 1, 2)
    error = WorkerError("it died")
    with restarts:
        assert restarts.keeps_engines(error)
        raise error
    assert restarts.resume == "required" and len(said) == 1
    with pytest.raises(WorkerError), restarts:
        raise error


@pytest.mark.parametrize(
    ("error", "most", "steps"),
    [
        (DIED, 0, [2]),
        (DIED, 3, []),
        (EngineLostError("the last one"), 3, [2]),
        (RewardError("it raised"), 3, [2]),
    ],
)
def test_when_no_start_is_left_or_no_engine_the_engines_do_not_stay(
    tmp_path: Path, error: HybridRLError, most: int, steps: list[int]
) -> None:
    assert not restarts_of(tmp_path, most, *steps)[0].keeps_engines(error)
