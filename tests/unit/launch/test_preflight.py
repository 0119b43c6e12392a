"""What a person is told about a run before it starts."""

from pathlib import Path

import pytest

from hybridrl.config.load import load
from hybridrl.errors import ConfigErrors
from hybridrl.hosts.machine import Machine
from hybridrl.launch.preflight import algorithm_row, preflight
from hybridrl.launch.verdict import SCOPES
from hybridrl.models.tiny import random_model

BARE = Machine(cores=2, memory_bytes=2**34, available_bytes=2**34, shm_bytes=2**33, gpus=())


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


@pytest.mark.parametrize(
    ("overrides", "refusal"),
    [
        ([], None),
        (["rollout.parallel={tp: 2, dp_attention: 2}"], None),
        (["rollout.parallel={tp: 2, ep: 2}"], "rollout.parallel: ep = 2"),
        (["rollout.parallel={tp: 4, dp_attention: 3}"], "rollout.parallel: dp_attention = 3 does not divide"),
        (
            ["rollout.kv_cache_tokens=68"],
            "a cache of 68 tokens cannot hold a prompt of 32 and an answer of 32",
        ),
        (["rollout.engine=tiny_engine:Tiny"], None),
        (["rollout.engine=tiny_engine:Tiny", "rollout.parallel.tp=2"], "a tiny engine has one rank"),
        (["cluster.placement=separate"], None),
    ],
)
def test_what_the_kind_of_engine_cannot_do_is_refused_before_a_start(
    tmp_path: Path, overrides: list[str], refusal: str | None
) -> None:
    random_model(tmp_path / "model", "qwen3", 0)
    (tmp_path / "t.jsonl").write_text('{"prompt": "1", "answer": "2"}\n')
    file, said = tmp_path / "my.yaml", []
    file.write_text(
        f"model: {tmp_path}/model\ndata: {{train: {tmp_path}/t.jsonl}}\nreward: exact_match\n"
        "run: {name: first}\nrollout: {max_prompt_tokens: 32, max_response_tokens: 32}\n"
    )

    def check() -> None:
        preflight(load(file, overrides), SCOPES["launch --on slurm"], BARE, lambda *line: said.append(line))

    if refusal is None:
        check()
        assert said
        return
    with pytest.raises(ConfigErrors) as error:
        check()
    (found,) = error.value.errors
    assert refusal in found.what and found.fix and "command line" in found.where
