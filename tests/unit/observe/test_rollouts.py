"""The lines of rollouts.jsonl: trajectories token by token."""

from pathlib import Path

import observe_values as values

from hybridrl.observe.rollouts import PROMPT, READ, TRAINED, RolloutFile, as_numbers, read, rollout_of, steps
from hybridrl.observe.samples import Columns
from hybridrl.types import InspectedTrajectory


def inspected(trained: tuple[bool, ...], **changes) -> InspectedTrajectory:
    count = sum(trained)
    given = {
        "index": 0,
        "token_ids": tuple(range(len(trained))),
        "prompt_tokens": 1,
        "trained": trained,
        "rollout_logp": (-1.0,) * count,
        "old_logp": (-1.25,) * count,
        "advantage": tuple(0.5 + i for i in range(count)),
        "suspicious": False,
    }
    return InspectedTrajectory(**{**given, **changes})


def line(found: InspectedTrajectory, step: int = 1) -> dict:
    batch = values.batch([[values.trajectory(1.0, right=1.0)]], step=step)
    return rollout_of(
        batch,
        found,
        next(batch.trajectories),
        prompt=batch.groups[0].prompt,
        columns=Columns("prompt", "answer"),
        why=["best"],
        pieces=as_numbers,
    )


def test_every_token_has_its_kind_advantage_and_difference() -> None:
    tokens = line(inspected((False, True, False, True)))["tokens"]
    assert tokens == [
        ["0 ", PROMPT, None, None],
        ["1 ", TRAINED, 0.5, -0.25],
        ["2 ", READ, None, None],
        ["3 ", TRAINED, 1.5, -0.25],
    ]


def test_what_was_not_computed_is_not_shown_as_zero() -> None:
    tokens = line(inspected((False, True), old_logp=None, advantage=None))["tokens"]
    assert tokens[1] == ["1 ", TRAINED, None, None]


def test_a_long_trajectory_keeps_its_two_ends() -> None:
    found = line(inspected((False, *[True] * 999)))
    assert (found["num_tokens"], found["left_out_after"], found["left_out"]) == (1000, 400, 400)
    assert [text for text, *_ in found["tokens"]] == as_numbers([*range(400), *range(800, 1000)])


def test_the_placeholders_of_a_picture_are_one_token_with_their_number() -> None:
    words = {0: "<|image_pad|>", 1: "a", 2: "<|image_pad|>"}
    shown = inspected((False,) * 700 + (True, True), token_ids=(*[0] * 698, 1, 1, 2, 2))
    batch = values.batch([[values.trajectory(1.0, right=1.0)]], step=1)
    told = {"prompt": batch.groups[0].prompt, "columns": Columns("prompt", "answer"), "why": ["best"]}
    pieces = lambda ids: [words[i] for i in ids]
    found = rollout_of(batch, shown, next(batch.trajectories), **told, pieces=pieces)
    texts = [text for text, *_ in found["tokens"]]
    pad = "<|image_pad|>"
    assert texts == [pad, f"{pad} x 697", "a", "a", pad, pad]
    assert (found["num_tokens"], found["left_out"]) == (702, 0)


def test_a_file_is_read_step_by_step_and_a_resume_drops_later_steps(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    file = RolloutFile(path, resume_step=None)
    assert not path.exists()
    for step in (1, 10, 20):
        file.write([line(inspected((False, True)), step)])
    with path.open("a") as more:
        more.write('{"step": 30, "why": ["be')  # a crash
    assert steps(path) == [1, 10, 20, 30]
    assert [found["step"] for found in read(path, [10, 30])] == [10]
    RolloutFile(path, resume_step=10)
    assert steps(path) == [1, 10]
