"""The reward curve, by what its axes hold."""

import numpy as np
import observe_values as values
import pytest

from hybridrl.observe.curve import draw, figure, running
from hybridrl.observe.jsonl import JsonLines

RECORDS = [
    values.heldout(0, 0.125),
    *(values.record(i, **{"critic/score/mean": i / 10}) for i in range(1, 11)),
    values.heldout(10, 0.75),
]


def lines_of(records) -> dict[str, np.ndarray]:
    (axes,) = figure(records, "quickstart").axes
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def test_training_and_heldout_are_drawn_where_they_were_measured() -> None:
    lines = lines_of(RECORDS)
    np.testing.assert_array_equal(lines["training, each step"], [[i, i / 10] for i in range(1, 11)])
    np.testing.assert_array_equal(lines["held-out"], [[0, 0.125], [10, 0.75]])
    assert len(lines["training, running mean ± std"]) == 10


def test_the_axes_say_what_they_are() -> None:
    (axes,) = figure(RECORDS, "quickstart").axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step (policy updates)", "mean reward")
    assert axes.get_title(loc="left") == "quickstart"
    assert [text.get_text() for text in axes.texts] == ["0.12", "0.75"]


def test_a_run_without_evaluation_has_no_heldout_line() -> None:
    assert "held-out" not in lines_of(RECORDS[1:-1])


def test_one_step_and_one_evaluation_make_a_picture() -> None:
    (axes,) = figure([values.heldout(0, 0.5), values.record(1, **{"critic/score/mean": 0.25})], "a").axes
    assert [len(line.get_xydata()) for line in axes.lines] == [1, 1, 1]
    assert [text.get_text() for text in axes.texts] == ["0.50"]


def test_the_running_mean_is_centred() -> None:
    middle, spread = running(np.array([0.0, 3.0, 6.0, 9.0]), window=3)
    np.testing.assert_array_equal(middle, [1.5, 3.0, 6.0, 7.5])
    assert spread == pytest.approx([1.5, 6**0.5, 6**0.5, 1.5], rel=1e-12)


def test_a_run_folder_becomes_a_picture(tmp_path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl", resume_step=None, warn=print)
    for record in RECORDS:
        lines.write(record)
    lines.close()
    path = draw(tmp_path)
    assert path == tmp_path / "reward.png"
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_a_run_without_steps_has_no_picture(tmp_path) -> None:
    assert draw(tmp_path) is None and list(tmp_path.iterdir()) == []
