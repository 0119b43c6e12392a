"""Every preset is a row that the algorithms accept, word for word."""

from pathlib import Path

import pytest

from hybridrl.algorithms import Objective, load_estimator
from hybridrl.config.frameworks.absent import ABSENT
from hybridrl.config.load import load
from hybridrl.config.presets import PRESETS
from hybridrl.errors import ConfigErrors


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


@pytest.mark.parametrize("name", ABSENT)
def test_a_name_of_a_framework_without_a_row_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    assert name not in PRESETS
    file = tmp_path / "my.yaml"
    file.write_text(
        f"model: m\ndata: {{train: t}}\nreward: exact\nrun: {{name: x}}\nalgorithm: {{preset: {name}}}\n"
    )
    with pytest.raises(ConfigErrors) as caught:
        load(file)
    assert ABSENT[name] in str(caught.value) and "my.yaml:5" in str(caught.value)
