"""What a launch refuses and works out before it starts anything."""

import json
from pathlib import Path

import pytest

from hybridrl.config.load import load
from hybridrl.config.run_shape import RunShape
from hybridrl.errors import ConfigError, DataError
from hybridrl.launch.prepare import prepare
from hybridrl.models.tiny import qwen3_arithmetic


def written(folder: Path, **changes: str) -> Path:
    """A config in `folder`, its data and its model; `changes` replaces whole lines of the config."""
    qwen3_arithmetic(folder / "model", 0)
    rows = [{"prompt": f"{a}+1=", "answer": str(a + 1)} for a in range(8)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = {
        "model": str(folder / "model"),
        "data": f"{{train: {folder / 'train.jsonl'}, chat_template: none}}",
        "reward": "exact_match",
        "run": "{name: a}",
    }
    path = folder / "run.yaml"
    path.write_text("\n".join(f"{key}: {value}" for key, value in (keys | changes).items()))
    return path


def test_the_shape_of_a_run_counts_ranks_trajectories_and_optimizer_steps(tmp_path: Path) -> None:
    changes = {
        "batch": "{prompts_per_step: 12, minibatch_prompts: 4, epochs: 2}",
        "algorithm": "{samples_per_prompt: 5}",
        "actor": "{parallel: {tp: 2, pp: 2, dp: 3}}",
    }
    shape = RunShape.of(load(written(tmp_path, **changes)).config)
    assert (shape.trainer_ranks, shape.trajectories_per_step, shape.optimizer_steps_per_step) == (12, 60, 6)


def test_data_and_gold_answers_are_read(tmp_path: Path) -> None:
    prepared = prepare(load(written(tmp_path)))
    assert (len(prepared.train), prepared.heldout, prepared.gold.num_checked) == (8, [], 8)
    assert prepared.describe() == "8 prompts, none held out; the reward accepts 100% of 8 gold answers"


def test_an_option_that_the_reward_lacks_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, reward="{name: exact_match, casefolds: true}")
    with pytest.raises(ConfigError, match="did you mean .*casefold"):
        prepare(load(path))


def test_an_empty_data_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="has no rows"):
        prepare(load(path))
