"""Every benchmark runs, at sizes that take seconds, and says what it declares."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[3]
NAMES = sorted(path.stem for path in ROOT.glob("benchmarks/[!_]*.py"))
GPU = [name for name in NAMES if name.endswith("_gpu")]

SLOW = {
    "algorithms",
    "episodes",
    "engine_vllm",
    "faults",
    "fsdp",
    "reshard",
    "same_numbers",
}
"""They start Ray, an engine, ranks of both trainer backends in turn, or what `hybridrl bench` starts too."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NAMES if n not in GPU],
)
def test_a_benchmark_runs_and_its_result_has_the_declared_keys(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "result.json"
    benchmark = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", "--smoke", "--json", str(file)])
    try:
        benchmark.main()
    except SystemExit as ended:
        assert not ended.code
    whole = json.loads(file.read_text(), parse_constant=_refuse)
    assert whole["command"].startswith(f"python -m benchmarks.{name} --smoke")
    assert whole["result"].keys() == benchmark.RESULT.keys()
    assert whole["versions"] and whole["hardware"]
    assert list(_numbers(whole["result"])), "a benchmark measures something"


@pytest.mark.skipif(torch.cuda.is_available(), reason="they would run")
@pytest.mark.parametrize("name", GPU)
def test_without_a_gpu_a_benchmark_refuses_before_it_does_anything(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    benchmark = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", "--smoke", "--json", str(file)])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert ended.value.code == 2 and benchmark.RESULT and not file.exists()
    assert f"no CUDA device here: benchmarks/{name}.py" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("benchmarks/results/*.json")))
def test_a_stored_result_is_of_the_benchmark_as_it_is(name: str) -> None:
    whole = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    assert whole["result"].keys() == importlib.import_module(f"benchmarks.{name}").RESULT.keys()
    assert whole["command"].startswith(f"python -m benchmarks.{name}") and "--smoke" not in whole["command"]


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no finite number")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
