"""Every preset is a row that the algorithms accept, word for word."""

from pathlib import Path

import pytest

from hybridrl.algorithms import Objective, load_estimator
from hybridrl.config.load import load
from hybridrl.config.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_makes_an_algorithm(tmp_path: Path, name: str) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(
        f"model: m\ndata: {{train: t}}\nreward: exact\nrun: {{name: x}}\nalgorithm: {{preset: {name}}}\n"
    )
    algorithm = load(file).config.algorithm
    assert load_estimator(algorithm) is not None
    objective = Objective(algorithm, max_response_tokens=16)
    assert ("rollout_logp" if objective.bypass else "old_logp") in objective.columns


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_its_source(name: str) -> None:
    unpublished = ("prime-rl", "Hu et al. 2026", "Williams 1992")  # or not on arXiv
    about = PRESETS[name].about
    assert "arXiv:" in about or about.endswith(unpublished)
