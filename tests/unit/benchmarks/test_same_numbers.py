"""What counts as a difference between two runs, on values made by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.same_numbers import (
    NOT_COMPARED,
    Difference,
    Run,
    Value,
    compare,
    compared_values,
    refuse_other_code,
    sha256,
    table,
)
from hybridrl.observe.names import METRICS

LOSS = Value("step", 2, "actor/loss")
KL = Value("step", 2, "actor/ppo_kl")


def test_equal_runs_do_not_differ_not_even_where_a_metric_is_not_finite() -> None:
    run = Run({LOSS: 0.1, KL: math.nan}, "abc")
    same = compare(run, Run({LOSS: 0.1, KL: math.nan}, "abc"))
    assert same.differing == [] and same.compared == 2 and same.steps == 1
    assert "none" in table({"tp2": same})


def test_the_last_bit_of_a_float_is_a_difference_with_step_metric_and_both_values() -> None:
    after = math.nextafter(0.1, 1.0)
    case = compare(Run({LOSS: 0.1}, "abc"), Run({LOSS: after}, "abc"))
    assert case.differing == [Difference("step 2: actor/loss", "0.1", "0.10000000000000002")]
    assert "step 2: actor/loss: 0.1 became 0.10000000000000002" in table({"tp2": case})
    assert compare(Run({LOSS: 0.0}, ""), Run({LOSS: -0.0}, "")).differing


def test_a_metric_that_came_or_went_and_other_weights_are_differences() -> None:
    case = compare(Run({LOSS: 0.1}, "abc"), Run({KL: 0.1}, "def"))
    assert [(d.old, d.new) for d in case.differing] == [
        ("0.1", "missing"),
        ("missing", "0.1"),
        ("abc", "def"),
    ]


def test_clocks_and_memory_are_not_compared_and_everything_else_is(tmp_path: Path) -> None:
    line = {"kind": "step", "step": 1, "time": 1.0, "wall_s": 2.0} | dict.fromkeys(METRICS, 0.5)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    compared = {value.name for value, _ in compared_values(tmp_path / "metrics.jsonl")}
    by_unit = {name for name, metric in METRICS.items() if metric.unit in ("s", "ms", "GiB")}
    host = {"perf/throughput", "perf/overhead_share"}
    assert METRICS.keys() - compared == by_unit | host
    for beginning in NOT_COMPARED:
        assert any(name.startswith(beginning) for name in METRICS), beginning


def test_a_digest_knows_tensors_and_not_files(tmp_path: Path) -> None:
    tensors = {name: torch.arange(6.0).view(2, 3) + i for i, name in enumerate("ab")}
    folders = {name: tmp_path / name for name in ("one", "two", "changed", "reshaped")}
    for folder in folders.values():
        folder.mkdir()
    save_file(tensors, folders["one"] / "model.safetensors")
    for i, name in enumerate("ba"):
        save_file({name: tensors[name]}, folders["two"] / f"part{i}.safetensors")
    changed = tensors | {"b": tensors["b"].clone()}
    changed["b"][1, 2].add_(2.0**-20)
    save_file(changed, folders["changed"] / "model.safetensors")
    save_file(tensors | {"a": tensors["a"].view(3, 2)}, folders["reshaped"] / "model.safetensors")
    digests = {name: sha256(folder) for name, folder in folders.items()}
    assert digests["one"] == digests["two"]
    assert len(set(digests.values())) == 3


def test_a_folder_without_the_sources_is_refused_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is no source tree of hybridrl"):
        refuse_other_code(tmp_path)
    refuse_other_code(Path(__file__).resolve().parents[3])
