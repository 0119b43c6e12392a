"""Policy and reference over a second backend that knows no Megatron: the same steps, and each other's
checkpoints."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plain_backend
import pytest
import trainer_scenarios as scenarios
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.config.schema import AlgorithmConfig

ALGORITHM = AlgorithmConfig.model_validate({"kl": {"coefficient": 0.1}})
OTHER = {"megatron": plain_backend.NAME, plain_backend.NAME: "megatron"}


def played(rank: int, rendezvous: Callable[[], str], folder: Path, saved: Path) -> dict[str, Any]:
    """By backend, two batches; and the second once more, from the other backend's checkpoint."""
    batches = [
        values.make_batch([scenarios.split(i, 1, (6,)) for i in range(2)], seed=s, step=s + 1) for s in (0, 1)
    ]

    def policy(backend: str) -> Any:
        actor = values.make_actor().model_copy(update={"backend": backend})
        return scenarios.policy(rank, rendezvous, folder, (1, 1, 1), actor=actor, algorithm=ALGORITHM)

    found = {}
    for backend in OTHER:
        with policy(backend) as trained:
            first = scenarios.play(trained, batches[0])
            trained.save(saved / backend)
            second = scenarios.play(trained, batches[1])
        found[backend] = {"first": first, "second": second}
    for backend, other in OTHER.items():
        with policy(backend) as trained:
            notes = trained.restore(saved / other)
            found[backend] |= {"notes": notes, "resumed": scenarios.play(trained, batches[1])}
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = values.make_model(tmp_path_factory.mktemp("models"), "qwen3")
    return on_ranks(1, played, folder, tmp_path_factory.mktemp("saved"))[0]


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for report, other in zip(found["reports"], expected["reports"], strict=True):
        for name in ("loss", "grad_norm", "lr"):
            assert report[name] == pytest.approx(other[name], rel=5e-6), name
    assert found["loaded"] == pytest.approx(expected["loaded"], rel=1e-4, abs=1e-6)


def test_a_second_backend_takes_the_same_steps(runs) -> None:
    one, other = runs["megatron"], runs[plain_backend.NAME]
    for batch in ("first", "second"):
        assert_same(other[batch], one[batch])


def test_what_the_checks_of_a_batch_find_comes_with_its_steps(runs) -> None:
    for report in runs["megatron"]["first"]["reports"]:
        assert {guard for guard, _ in report["warnings"]} == {"mask"}


def test_each_continues_from_the_others_checkpoint(runs) -> None:
    for found in runs.values():
        assert_same(found["resumed"], found["second"])
        assert len(found["notes"]) == 1


def test_roles_import_no_megatron() -> None:
    roles = ("policy", *(f"roles.{name}" for name in ("critic", "frozen", "reward_model", "supervised")))
    code = "import sys; " + "; ".join(f"import hybridrl.trainer.{name}" for name in roles)
    code += "; sys.exit(any(name.startswith('megatron') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
