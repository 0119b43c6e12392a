"""What a launch refuses and works out before it starts anything."""

import json
from pathlib import Path

import pytest

from hybridrl.config.load import load
from hybridrl.errors import ConfigError, DataError, ResourceError
from hybridrl.hosts.machine import GPU, Machine
from hybridrl.launch.local import refuse_gpus
from hybridrl.launch.plan import RunShape
from hybridrl.launch.prepare import prepare
from hybridrl.models.tiny import qwen3_arithmetic

CPU_ONLY = Machine(2, 2**34, 2**33, 2**33, ())
WITH_GPU = Machine(2, 2**34, 2**33, 2**33, (GPU(0, "GPU-0", "H100", 80 * 2**30, 0),))


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


def test_a_machine_with_gpus_is_refused_until_the_config_asks_for_none(tmp_path: Path) -> None:
    refuse_gpus(load(written(tmp_path)), CPU_ONLY)
    with pytest.raises(ResourceError, match="cluster.gpus_per_node=0 runs it on the CPU"):
        refuse_gpus(load(tmp_path / "run.yaml"), WITH_GPU)
    refuse_gpus(load(tmp_path / "run.yaml", ["cluster.gpus_per_node=0"]), WITH_GPU)
    with pytest.raises(ResourceError, match="would take 4 GPUs"):
        refuse_gpus(load(tmp_path / "run.yaml", ["cluster.gpus_per_node=4"]), CPU_ONLY)


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
