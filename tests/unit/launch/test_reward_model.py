"""A reward model before a run: folders that can judge it, the setup of its ranks, and their placement."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hub_values import cached
from reward_model_folders import write_reward_model

from hybridrl.config.load import load
from hybridrl.config.run_shape import RunShape
from hybridrl.config.schema import Config, RewardModelConfig
from hybridrl.config.training import ActorConfig, TrainParallel
from hybridrl.errors import HybridRLError
from hybridrl.hosts.machine import Machine
from hybridrl.launch import model_folders
from hybridrl.launch.preflight import preflight
from hybridrl.launch.prepare import prepare
from hybridrl.launch.reward_model_setup import scoring
from hybridrl.launch.shape import Placement
from hybridrl.launch.verdict import SCOPES
from hybridrl.models import tiny
from hybridrl.models.spec import read
from hybridrl.trainer.setup import RankSetup

BARE = Machine(cores=2, memory_bytes=2**34, available_bytes=2**34, shm_bytes=2**33, gpus=())

TEXT = """\
model: policy
data: {train: prompts.jsonl, chat_template: none}
reward: exact_match
reward_model: judge
rollout: {max_prompt_tokens: 8, max_response_tokens: 4}
run: {name: first}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(TEXT)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    tiny.qwen3_arithmetic(tmp_path / "policy", 0)
    write_reward_model(tmp_path / "judge")
    return tmp_path


def refusal(*overrides: str) -> str:
    said: list[tuple[str, str]] = []
    with pytest.raises(HybridRLError) as refused:
        preflight(
            load("my.yaml", overrides), SCOPES["launch --on slurm"], BARE, lambda *line: said.append(line)
        )
        prepare(load("my.yaml", overrides))
    return str(refused.value)


def test_an_export_of_the_same_tokenizer_passes(here: Path) -> None:
    said: list[tuple[str, str]] = []
    loaded = load("my.yaml", ["reward_model={path: judge, parallel: {pp: 2}}", "reward=none"])
    preflight(loaded, SCOPES["launch --on slurm"], BARE, lambda *line: said.append(line))
    assert "reward model PP2" in dict(said)["plan"]
    assert prepare(loaded).gold.num_checked == 0


def test_files_without_the_head_are_refused_by_its_name(here: Path) -> None:
    write_reward_model(here / "headless", drop="score.weight")
    assert "the files of headless have no tensor score.weight" in refusal("reward_model=headless")
    assert "the model policy has no score.weight" in refusal("reward_model=policy")


def test_a_cut_that_does_not_divide_it_is_refused(here: Path) -> None:
    assert "does not divide" in refusal("reward_model={path: judge, parallel: {tp: 3}}")


def test_another_tokenizer_is_refused(here: Path) -> None:
    shutil.copytree("judge", "other")
    told = json.loads(Path("other/tokenizer.json").read_text())
    vocab = told["model"]["vocab"]
    vocab["1"], vocab["2"] = vocab["2"], vocab["1"]
    Path("other/tokenizer.json").write_text(json.dumps(told))
    found = refusal("reward_model=other")
    assert "the tokenizer of the reward model other is not that of policy: '1' is token 1" in found


def test_workers_see_the_folder_of_a_name_on_the_hub(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "cache"))
    folder = cached(here / "cache", "acme/judge", {})
    loaded = load("my.yaml", ["reward_model=acme/judge"])
    assert model_folders.absent(loaded)
    folder.rmdir()
    write_reward_model(folder)
    assert not model_folders.absent(loaded)
    own = model_folders.in_folders(loaded).config.reward_model
    assert own is not None and own.path == str(folder)


def config(**sections: Any) -> Config:
    needed = {"model": "m", "data": {"train": "d.jsonl"}, "reward": "none", "run": {"name": "test"}}
    return Config.model_validate({**needed, **sections})


def test_its_ranks_are_placed() -> None:
    own = {"path": "judge", "parallel": {"tp": 2, "dp": 2}}
    shape = RunShape.of(config(reward_model=own))
    assert shape.reward_model == TrainParallel(tp=2, dp=2)
    placement = Placement.of(shape, 2)
    assert placement.reward_model == (0, 0, 1, 1) and sum(placement.per_node) == 1 + 1 + 1 + 4
    shared = RunShape.of(config(reward_model="judge"))
    assert shared.reward_model is None and Placement.of(shared, 1).reward_model == ()


def test_a_rank_is_made_from_the_policys(here: Path) -> None:
    actor = ActorConfig.model_validate({"offload": "all", "moe": {"aux_loss": 0.1}, "lora": {}})
    setup = RankSetup(
        rank=1,
        rendezvous="file:///x",
        parallel=TrainParallel(tp=2, ep=2, dp=1),
        model=read("policy"),
        model_folder=Path("policy"),
        actor=actor,
        seed=0,
        timeout_s=1.0,
    )
    made = scoring(setup, RewardModelConfig(path="judge"))
    assert made.model.value_head and made.model_folder == Path("judge")
    assert (made.rank, made.parallel) == (1, TrainParallel(tp=2, dp=1))  # it has no experts to partition
    assert (made.actor.offload, made.actor.lora, made.actor.moe.aux_loss) == ("all", None, 0.0)
