"""Expected curves: bands of several seeds, and runs inside and outside of them."""

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from report_values import run_folder

from hybridrl.cli import main as command
from hybridrl.errors import UserError
from hybridrl.report.band import RunBand, band_of, check, differences, main, make, read, shipped, write
from hybridrl.report.page import render
from hybridrl.report.run_data import read_run


def one_run(folder: Path, seed: int, last: float = 0.9, **changes: object) -> Path:
    """A run whose held-out reward grows to about `last`."""
    chance = random.Random(seed)
    heldout = [last * i / 8 + chance.gauss(0.0, 0.02) for i in range(9)]
    return run_folder(folder, heldout=heldout, **{"run__seed": seed, **changes})


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [one_run(tmp_path / f"a-{seed}", seed) for seed in range(5)]


@pytest.fixture
def band(folders: list[Path]) -> RunBand:
    return make([read_run(folder) for folder in folders], "a")


@pytest.mark.parametrize(("last", "side"), [(0.9, "within"), (0.6, "below"), (1.3, "above")])
def test_the_end_of_a_run_decides(tmp_path: Path, band: RunBand, last: float, side: str) -> None:
    verdict, *others = check(read_run(one_run(tmp_path / "b", 7, last)), band)
    assert verdict.name == "held-out" and verdict.side == side
    assert {one.side for one in others} == {"within"}


def test_a_run_that_still_goes_on_is_compared_with_what_it_has(tmp_path: Path, band: RunBand) -> None:
    half = run_folder(tmp_path / "b", steps=10, heldout=[0.0, 0.1125, 0.225, 0.3375, 0.45], run__seed=9)
    found = check(read_run(half), band)[0]
    assert (found.side, found.step) == ("within", 10)
    slow = run_folder(tmp_path / "c", steps=10, heldout=[0.0, 0.0, 0.0, 0.1, 0.45], run__seed=9)
    found = check(read_run(slow), band)[0]
    assert found.side == "below" and 0.3 < found.share_outside < 0.9  # it caught up only in the end


def test_a_new_seed_is_inside_nearly_always(tmp_path: Path, band: RunBand) -> None:
    new = [check(read_run(one_run(tmp_path / f"n-{seed}", seed)), band)[0] for seed in range(100, 130)]
    assert sum(one.side == "within" for one in new) >= 28


def test_seeds_that_all_end_at_the_same_value_leave_some_width(tmp_path: Path) -> None:
    runs = [
        run_folder(tmp_path / f"a-{seed}", heldout=[0.0, rise, 0.8, *[1.0] * 6], run__seed=seed)
        for seed, rise in enumerate([0.3, 0.4, 0.5])
    ]
    band = make([read_run(run) for run in runs], "a")
    assert 0.9 < band.curves["held-out"].low_P[-1] < 1.0


def test_a_band_is_kept_as_a_small_file(tmp_path: Path, band: RunBand) -> None:
    write(band, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    assert read(text, "a") == read(json.dumps(json.loads(text)), "a") and len(text) < 6000
    assert list(read(text, "a").curves["held-out"].step_P) == list(band.curves["held-out"].step_P)
    with pytest.raises(UserError, match="b.json holds no expected curves"):
        read("{}", "b.json")


def test_runs_that_differ_in_more_than_the_seed_make_no_band(tmp_path: Path, folders: list[Path]) -> None:
    other = one_run(tmp_path / "b", 8, algorithm__estimator__name="rloo")
    with pytest.raises(UserError, match=r"b is of another config than .*name = rloo instead of grpo"):
        make([read_run(folder) for folder in [*folders, other]], "a")
    same = one_run(tmp_path / "c", 0)
    with pytest.raises(UserError, match="two of the runs have the same seed"):
        make([read_run(folder) for folder in [*folders, same]], "a")
    with pytest.raises(UserError, match="2 runs make no band: give 3 or more"):
        make([read_run(folder) for folder in folders[:2]], "a")


def test_the_seed_and_the_place_of_a_run_make_no_difference(tmp_path: Path, band: RunBand) -> None:
    run = read_run(one_run(tmp_path / "b", 8, run__name="b"))
    assert not differences(band.config, {one.key: one.value for one in run.settings})


def test_the_command_makes_a_band_and_the_report_checks_with_it(
    tmp_path: Path, folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "mine.json")
    assert main([file, *map(str, folders)]) == 0
    assert "held-out: " in capsys.readouterr().out
    good, bad = one_run(tmp_path / "good", 11), one_run(tmp_path / "bad", 12, 0.2)
    assert command(["report", str(good), "--check", "--band", file]) == 0
    assert "within    held-out 0.8" in capsys.readouterr().out
    assert command(["report", str(bad), "--check", "--band", file]) == 1
    assert "below     held-out 0.1" in capsys.readouterr().out
    assert not (good / "report.html").exists()


def test_a_config_without_a_band_is_told_what_differs_from_the_nearest_one(tmp_path: Path) -> None:
    run = read_run(one_run(tmp_path / "b", 3, algorithm__estimator__name="rloo"))
    with pytest.raises(UserError, match=r"no expected curve fits.*algorithm.estimator.name = rloo.*--band"):
        band_of(run)


def test_every_band_of_the_package_is_whole() -> None:
    bands = shipped()
    assert {"quickstart", "quickstart_async", "lookup", "shapes_vlm"} <= {band.recipe for band in bands}
    for band in bands:
        assert len(band.seeds) >= 3 and "held-out" in band.curves
        for curve in band.curves.values():
            assert len(curve.step_P) == len(curve.low_P) == len(curve.high_P)
            assert all(
                low <= mean <= high for low, mean, high in zip(curve.low_P, curve.mean_P, curve.high_P)
            )


def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(one_run(tmp_path / "b", 3))
    assert command(["report", run, "--check", "--text"]) == 2
    assert "--text and --check do not go together" in capsys.readouterr().err
    assert command(["report", run, "--band", "a.json"]) == 2


def test_the_page_draws_the_limits_of_a_config_that_has_a_band(tmp_path: Path) -> None:
    (band,) = (one for one in shipped() if one.recipe == "quickstart")
    settings = "\n".join(_lines(band.config))
    run = one_run(tmp_path / "b", 3)
    assert 'class="expected"' not in render(read_run(run))
    (run / "resolved.yaml").write_text(settings)
    text = render(read_run(run))
    assert text.count('class="expected"') == 3 and "curves of other seeds" in text


def _lines(config: Mapping[str, str]) -> Iterator[str]:
    """A resolved.yaml of these keys."""
    above: list[str] = []
    for dotted, value in config.items():
        *sections, name = dotted.split(".")
        for depth, section in enumerate(sections):
            if above[: depth + 1] != sections[: depth + 1]:
                yield f"{'  ' * depth}{section}:"
        above = sections
        yield f"{'  ' * len(sections)}{name}: {value}  # default"
