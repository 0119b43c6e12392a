"""The recipes in configs/: short, with a head that says what they are and how to get the data."""

from pathlib import Path

import pytest
from documented import RECIPES

from hybridrl import cli
from hybridrl.config.load import load, load_as
from hybridrl.config.schema import Config
from hybridrl.config.sft_rm import RMConfig, SFTConfig
from hybridrl.models.published import read_published

KINDS = {"sft": SFTConfig, "rm": RMConfig}
"""Beginning of a file's name -> the kind of its config, where that is not reinforcement learning."""

CLUSTER = [path for path in RECIPES if "nodes:" in path.read_text("utf-8")]
PROMISED = {
    "grpo_qwen72b",
    "ppo_qwen7b",
    "dapo_qwen32b",
    "long_answers_qwen32b",
    "grpo_qwen3_30b_a3b",
    "gspo_qwen3_235b_a22b",
    "grpo_deepseek_v3",
    "grpo_llama70b",
    "grpo_gemma27b",
    "remax_qwen7b",
    "prime_qwen7b",
    "tinyzero_countdown",
    "quickstart_fsdp",
    "quickstart_async",
    "grpo_qwen7b_fsdp",
    "guess",
    "lookup",
    "kuhn_poker",
    "agent_program",
    "judge_qwen7b",
    "search_qwen7b",
    "python_qwen32b",
    "agent_qwen7b",
    "shapes_vlm",
    "geo3k_qwen3vl_8b",
    "grpo_qwen25vl_7b",
}


SLOW = {"grpo_deepseek_v3"}
"""Whose weight swap takes over 10 s to prove: 256 experts on each layer, 512 GPUs."""

PLANNED = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
    for path in CLUSTER
]


def name(path: Path) -> str:
    return path.stem


def test_the_recipes_are_there() -> None:
    assert PROMISED <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_is_short_and_says_what_it_is(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    head = [line for line in lines[:4] if line.startswith("# ")]
    assert len(lines) <= 40
    assert 1 <= len(head) <= 3 and not lines[len(head)].startswith("#")
    cfg = load_as(KINDS.get(path.stem.partition("_")[0], Config), path).config
    assert path.stem.startswith(cfg.run.name.replace("-", "_"))


@pytest.mark.parametrize("path", CLUSTER, ids=name)
def test_a_recipe_for_a_cluster_says_where_its_data_is_from(path: Path) -> None:
    cfg = load(path).config
    head = path.read_text("utf-8").partition("model:")[0]
    assert "# Data: " in head
    for source in (cfg.data.train, cfg.data.heldout):
        if source is not None and source.path is not None:
            folder = Path(source.path).parts[1]
            assert f"--local-dir data/{folder}" in head.replace("$set", folder)


@pytest.mark.parametrize("path", CLUSTER, ids=name)
def test_a_recipe_fills_its_gpus(path: Path) -> None:
    cfg = load(path).config
    gpus = cfg.cluster.nodes * (cfg.cluster.gpus_per_node or 0)
    engine, actor = cfg.rollout.parallel, cfg.actor.parallel
    assert read_published(cfg.model.path) is not None
    assert gpus % actor.model_ranks == 0 and gpus % engine.tp == 0
    assert gpus // actor.pp % (actor.ep * actor.etp) == 0


@pytest.mark.parametrize("path", PLANNED)
def test_a_plan_accepts_the_recipe_for_its_gpus(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where neither its model nor its data is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load(path).config.cluster.gpu is not None
    assert cli.main(["plan", str(path)]) == 0, capsys.readouterr().err
