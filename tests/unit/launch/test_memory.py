"""A machine that cannot hold a run is refused before anything starts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hybridrl.config.load import load, load_as
from hybridrl.config.sft_rm import RMConfig, SFTConfig, SupervisedConfig
from hybridrl.errors import ResourceError, UserError
from hybridrl.hosts.machine import GIB, GPU, Machine
from hybridrl.launch.memory import refuse_too_little_memory
from hybridrl.launch.preflight import preflight
from hybridrl.launch.verdict import SCOPES
from hybridrl.models.published import read_published
from hybridrl.models.tiny import qwen3_arithmetic

BARE = Machine(cores=2, memory_bytes=2**40, available_bytes=24 * GIB, shm_bytes=2**33, gpus=())
CARD = GPU(index=0, uuid="", name="NVIDIA GeForce RTX 4090", memory_bytes=24 * GIB, used_bytes=GIB)


@pytest.fixture
def refused(tmp_path: Path):
    """What is said of the run of a model of 7 B weights with these overrides; "": nothing."""
    spec = read_published("Qwen/Qwen2.5-7B")
    assert spec is not None
    file = tmp_path / "my.yaml"
    file.write_text("model: Qwen/Qwen2.5-7B\ndata: {train: t.jsonl}\nreward: exact\nrun: {name: first}\n")

    def said(machine: Machine, *overrides: str) -> str:
        try:
            refuse_too_little_memory(load(file, overrides), spec, machine)
        except ResourceError as error:
            return str(error)
        return ""

    return said


def test_both_numbers_and_their_parts_are_said(refused) -> None:
    text = refused(BARE)
    assert text.startswith("Qwen2.5-7B needs at least 141.9 GiB (training 113.5, engines 28.4)")
    assert "the machine has available 24.0 GiB" in text and "model: Qwen" not in text
    assert "my.yaml:1" in text and text.endswith("use a smaller model")
    assert refused(replace(BARE, available_bytes=142 * GIB)) == ""


@pytest.mark.parametrize(
    ("algorithm", "least"),
    [("preset=copg", 170.2), ("kl.coefficient=0.1", 170.2), ("preset=ppo", 247.2), ("preset=prime", 283.7)],
)
def test_every_model_of_the_algorithm_counts(refused, algorithm: str, least: float) -> None:
    assert f"needs at least {least} GiB" in refused(BARE, f"algorithm.{algorithm}")


def test_a_gpu_of_any_make_is_asked_for_what_is_free(refused) -> None:
    node = replace(BARE, gpus=(CARD,) * 8, available_bytes=2**40)
    text = refused(node)
    assert "a GPU has free 23.0 GiB" in text and "raise actor.parallel.tp or pp" in text
    assert refused(node, "actor.parallel={tp: 4, pp: 2}", "rollout.parallel.tp=4") == ""
    assert refused(node, "cluster.gpus_per_node=0") == ""


@pytest.mark.parametrize(("kind", "least"), [(SFTConfig, 113.5), (RMConfig, 105.4)])
def test_training_on_examples_has_no_engines_and_a_reward_model_no_vocabulary(
    tmp_path: Path, kind: type[SupervisedConfig], least: float
) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("model: Qwen/Qwen2.5-7B\ndata: {train: t.jsonl}\nrun: {name: first}\n")
    spec = read_published("Qwen/Qwen2.5-7B")
    assert spec is not None
    with pytest.raises(ResourceError, match=rf"needs at least {least} GiB \(training {least}\), the machine"):
        refuse_too_little_memory(load_as(kind, file), spec, BARE)


def test_a_preflight_asks(tmp_path: Path) -> None:
    qwen3_arithmetic(tmp_path / "model", 0)
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "1+1=", "answer": "2"}) + "\n")
    file = tmp_path / "my.yaml"
    file.write_text(
        f"model: {tmp_path}/model\ndata: {{train: {tmp_path}/train.jsonl, chat_template: none}}\n"
        "reward: exact_match\nrun: {name: first}\n"
        "rollout: {max_prompt_tokens: 8, max_response_tokens: 8}\n"
    )
    preflight(load(file), SCOPES["launch"], BARE, lambda *_: None)
    with pytest.raises(UserError, match="model needs at least 0.0 GiB"):
        preflight(load(file), SCOPES["launch"], replace(BARE, available_bytes=1000), lambda *_: None)
