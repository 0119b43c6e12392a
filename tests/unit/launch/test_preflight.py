"""What a person is told about a run before it starts."""

from pathlib import Path

import pytest

from hybridrl.config.load import load
from hybridrl.launch.preflight import algorithm_row


@pytest.mark.parametrize(
    ("overrides", "row"),
    [
        ([], "estimator grpo, loss ppo_clip"),
        (["algorithm.estimator=rloo"], "estimator rloo, loss ppo_clip"),
        (
            ["algorithm.preset=dapo", "algorithm.loss.clip_high=0.3"],
            "dapo: estimator grpo, loss ppo_clip, loss.clip_low 0.2, loss.clip_high 0.3, "
            "aggregate token_mean, dynamic_sampling with its defaults",
        ),
        (
            ["algorithm.preset=grpo", "algorithm.kl.coefficient=0.01"],
            "grpo: estimator grpo, loss ppo_clip, loss.clip_low 0.2, loss.clip_high 0.2, "
            "aggregate seq_mean_token_mean, kl.estimator k3, kl.coefficient 0.01",
        ),
    ],
)
def test_a_preset_is_printed_as_the_row_that_it_stands_for(
    tmp_path: Path, overrides: list[str], row: str
) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("model: m\ndata: {train: t.jsonl}\nreward: exact\nrun: {name: first}\n")
    assert algorithm_row(load(file, overrides)) == row
