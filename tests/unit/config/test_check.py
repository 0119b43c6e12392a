"""Each rule refuses what it is for, with both values and the change, and lets a good config pass."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hybridrl.config.load import load, load_as
from hybridrl.config.rules import RULES, RuleContext, check
from hybridrl.config.sft_rm import SFTConfig
from hybridrl.models import spec as models

QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}


@pytest.fixture
def spec(tmp_path: Path) -> models.ModelSpec:
    folder = tmp_path / "Qwen2.5-7B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN))
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return models.read(folder)


@pytest.fixture
def run(tmp_path: Path, spec: models.ModelSpec):
    """Errors of a config with these overrides in a world with these facts; its model and data exist."""
    model, data = tmp_path / "Qwen2.5-7B", tmp_path / "train.jsonl"
    data.write_text("{}\n")
    file = tmp_path / "my.yaml"
    file.write_text(f"model: {model}\ndata: {{train: {data}}}\nreward: exact\nrun: {{name: first}}\n")

    def errors(*overrides: str, **facts: Any) -> list[str]:
        context = {"num_gpus": 0, "spec": spec} | facts
        return [
            str(e).replace(f"{tmp_path}/", "") for e in check(load(file, overrides), RuleContext(**context))
        ]

    return errors


def test_a_good_config_passes(run) -> None:
    assert run() == []
    assert run("actor.parallel={tp: 2, pp: 7, dp: 2}", "rollout.parallel.tp=4") == []
    assert run("actor.parallel={tp: 2, sp: true, cp: 2, pp: 3, stage_layers: [9, 10, 9]}") == []
    assert run("actor.parallel={pp: 2, vpp: 2}") == []
    assert run("actor.backend=fsdp", "actor.parallel={dp: 4, shard: 2, cp: 2, cp_exchange: heads}") == []
    assert run("critic={parallel: {pp: 2}, microbatch_tokens: 8192}", "actor.offload=optimizer") == []
    assert run("batch={prompts_per_step: 512, minibatch_prompts: 128, max_lag: 1}") == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["critic.microbatch_tokens=512"],
            "critic.microbatch_tokens = 512 has no effect on the actor's ranks",
        ),
        (
            ["reference={parallel: {tp: 2}, microbatch_tokens: 100}"],
            "is more than reference.microbatch_tokens = 100",
        ),
        (["critic.parallel={dp: 100000}"], "critic.parallel.dp = 100000 ranks share"),
        (["critic.parallel={pp: 3}"], "critic.parallel.pp = 3 does not divide"),
        (["actor.offload=all", "batch.max_lag=1"], "actor.offload = all makes room while engines generate"),
        (
            ["rollout.parallel.tp=3"],
            "rollout.parallel.tp = 3 does not divide the 28 attention heads of Qwen2.5-7B  (command line): "
            "use 1, 2 or 4",
        ),
        (["actor.parallel.tp=8"], "actor.parallel.tp = 8 does not divide the 28 attention heads"),
        (["actor.parallel.tp=7"], "actor.parallel.tp = 7 does not divide the 18944 feed-forward columns"),
        (
            ["actor.parallel.pp=3"],
            "pp = 3 does not divide the 28 layers of Qwen2.5-7B  (command line): use 1, 2, 4, 7",
        ),
        (
            ["actor.parallel.vpp=2"],
            "actor.parallel.vpp = 2 chunks take turns in a pipeline, actor.parallel.pp = 1",
        ),
        (["actor.parallel.sp=true"], "actor.parallel.sp = true shares tokens over the tensor-parallel ranks"),
        (["actor.parallel={pp: 4, vpp: 3}"], "pp = 4 times vpp = 3 does not divide the 28 layers"),
        (
            ["actor.parallel={pp: 2, stage_layers: [14, 7, 7]}"],
            "actor.parallel.stage_layers = [14, 7, 7] describes 3 chunks, actor.parallel.pp x vpp = 2",
        ),
        (
            ["actor.parallel={pp: 2, stage_layers: [14, 13]}"],
            "adds up to 27 layers, Qwen2.5-7B has 28  (command line): give 2 numbers that add up to 28",
        ),
        (["actor.parallel.ep=2"], "actor.parallel.ep = 2 is for experts, and Qwen2.5-7B has none"),
        (["actor.parallel.etp=2"], "actor.parallel.etp = 2 is for experts, and Qwen2.5-7B has none"),
        (
            ["critic.parallel={tp: 2, sp: true, pp: 3}"],
            "critic.parallel.pp = 3 does not divide the 28 layers",
        ),
        (
            ["batch.prompts_per_step=500", "batch.minibatch_prompts=128"],
            "batch.prompts_per_step = 500 is not a multiple of batch.minibatch_prompts = 128  (command line)"
            ": use 512 or 384",
        ),
        (["batch.minibatch_prompts=128"], "batch.prompts_per_step = 64 is not a multiple"),
        (["actor.parallel.dp=64", "batch={prompts_per_step: 4}"], "dp = 64 ranks share 32 trajectories"),
        (["model=nowhere"], "no model folder at model.path = nowhere  (command line)"),
        (["data.heldout=nowhere.jsonl"], "no file at data.heldout = nowhere.jsonl  (command line)"),
        (["data.train=table.tsv"], "data.train = table.tsv is no prompt file"),
        (
            ["data.chat_template=none", "data.system_prompt=Think."],
            "data.system_prompt needs a chat template",
        ),
        (
            ["actor.microbatch_tokens=2000"],
            "max_response_tokens = 2048 is more than actor.microbatch_tokens = 2000",
        ),
        (
            ["rollout.max_response_tokens=32000", "actor.microbatch_tokens=65536"],
            "= 33024 is more than the 32768 positions of Qwen2.5-7B",
        ),
        (["rollout.kv_cache_tokens=512"], "= 2048 is more than rollout.kv_cache_tokens = 512"),
        (["batch.max_lag=100"], "batch.max_lag = 100 reaches over the whole run, run.steps = 100"),
        (
            ["actor.optimizer.warmup_steps=100"],
            "warmup_steps = 100 never ends, the run has 100 optimizer steps",
        ),
        (["actor.optimizer.min_lr=1e-7"], "min_lr = 1e-07 has no effect with schedule constant"),
        (
            ["actor.optimizer={schedule: cosine, lr: 1e-6, min_lr: 1e-5}"],
            "min_lr = 1e-05 is above lr = 1e-06",
        ),
        (["actor.optimizer.betas=[0.9, 1.0]"], "actor.optimizer.betas = [0.9, 1.0]"),
        (
            ["evaluate.samples_per_prompt=4"],
            "evaluate.samples_per_prompt = 4 greedy answers are all the same",
        ),
        (["evaluate.top_k=5"], "evaluate.top_k = 5 with evaluate.temperature = 0: a greedy answer has"),
        (["evaluate.top_p=0.9"], "evaluate.top_p = 0.9 with evaluate.temperature = 0: a greedy answer has"),
        (["cluster.gpus_per_node=8"], "cluster.gpus_per_node = 8, this machine has no GPU"),
        (["rollout.swap=in_flight"], "rollout.swap = in_flight has no effect with batch.max_lag = 0"),
        (["batch.unfinished=carry"], "batch.unfinished = carry trains on tokens of the version before"),
        (["batch.order=finished"], "batch.order = finished has no effect with batch.max_lag = 0"),
        (["batch.oversample=1.5"], "batch.oversample = 1.5 has no effect with batch.order = fifo and"),
        (
            ["batch.oversample=3", "batch.order=finished"],
            "batch.oversample = 3 is too large, at most 2 is useful",
        ),
        (
            ["batch.oversample=2.5", "batch.max_lag=1"],
            "batch.oversample = 2.5 is too large, with batch.max_lag = 1 a group",
        ),
        (
            ["batch.unfinished=abort", "batch.max_lag=1"],
            "batch.unfinished = abort ends answers that batch.max_lag = 1 lets go on",
        ),
        (
            ["batch.stale=mask", "batch.max_lag=1"],
            "batch.stale = mask has no effect with batch.order = fifo",
        ),
        (["run.name=a/b"], "run.name = 'a/b' is not a folder name"),
        (["run.name=.."], "run.name = '..' is not a folder name"),
    ],
)
def test_a_rule_names_both_values_and_the_change(run, overrides: list[str], message: str) -> None:
    (only,) = run(*overrides)
    assert message in only


@pytest.mark.parametrize(
    "overrides",
    [
        ["batch.max_lag=2", "batch.order=finished", "batch.stale=mask", "rollout.swap=in_flight"],
        ["batch.max_lag=1", "batch.oversample=1.2", "batch.unfinished=carry"],
        ["batch.order=finished", "batch.oversample=1.2", "batch.unfinished=abort"],
    ],
)
def test_streaming_configs_that_mean_something_pass(run, overrides: list[str]) -> None:
    assert run(*overrides) == []


def test_all_mistakes_are_found_at_once(run) -> None:
    assert len(run("rollout.parallel.tp=3", "batch.max_lag=100", "run.name=..", "data.heldout=x.jsonl")) == 4


def test_the_place_is_the_line_of_the_key(run, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(file.read_text() + "batch:\n  prompts_per_step: 500\n  minibatch_prompts: 128\n")
    assert "(my.yaml:6)" in run()[0]


def test_a_missing_file_names_its_neighbours(run, tmp_path: Path) -> None:
    (error,) = run(f"data.train={tmp_path}/trian.jsonl")
    assert error.endswith("there is train.jsonl")
    (error,) = run(f"model={tmp_path}/Qwen2.5-7b", spec=None)
    assert error.endswith("there is Qwen2.5-7B")


def test_a_model_that_will_be_made_may_be_missing(run) -> None:
    assert run("model={path: nowhere, make: maker:make}", spec=None) == []


def test_a_tokenizer_without_chat_template_is_refused_unless_none_is_wanted(run, tmp_path: Path) -> None:
    (tmp_path / "Qwen2.5-7B/tokenizer_config.json").write_text("{}")
    (error,) = run()
    assert "has no chat template" in error and "data.chat_template: none" in error
    assert run("data.chat_template=none") == []
    (tmp_path / "Qwen2.5-7B/chat_template.jinja").write_text("x")
    assert run() == []


def test_key_value_heads_are_shared_evenly_or_repeated_evenly(run, spec: models.ModelSpec) -> None:
    def heads(**sizes: int) -> models.ModelSpec:
        return dataclasses.replace(spec, ffn_size=12 * 64, num_layers=2, **sizes)

    assert run("rollout.parallel.tp=12", spec=heads(num_heads=12, num_kv_heads=4)) == []
    (error,) = run("rollout.parallel.tp=6", spec=heads(num_heads=12, num_kv_heads=4))
    assert "neither divides the 4 key-value heads nor is a multiple" in error
    assert error.endswith("use 1, 2, 4 or 12")


def test_a_teacher_is_of_the_policys_architecture_and_sizes(run, tmp_path: Path) -> None:
    learns = "algorithm.estimator=distillation"
    (error,) = run(learns, "algorithm.teacher=nowhere")
    assert "no model folder at algorithm.teacher = nowhere" in error
    alike = tmp_path / "alike"
    alike.mkdir()
    (alike / "config.json").write_text(json.dumps(QWEN))
    assert run(learns, f"algorithm.teacher={alike}") == []
    other = tmp_path / "smaller"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(QWEN | {"num_hidden_layers": 14}))
    (error,) = run(learns, f"algorithm.teacher={other}")
    assert "is not of the architecture and sizes of Qwen2.5-7B" in error


def test_a_policy_has_nothing_to_learn_from_itself(run, tmp_path: Path) -> None:
    itself = f"algorithm.teacher={tmp_path / 'Qwen2.5-7B'}"
    (error,) = run("algorithm.estimator=distillation", itself)
    assert "is model.path, the policy itself: every advantage would be 0" in error
    assert run("algorithm.estimator={name: distillation, outcome_weight: 1.0}", itself) == []


def test_gpus_are_counted(run) -> None:
    assert run("actor.parallel.tp=4", "rollout.parallel.tp=4", num_gpus=4) == []
    (error,) = run("actor.parallel={tp: 4, dp: 2}", num_gpus=4)
    assert error.startswith("actor.parallel needs 8 GPUs, there are 4  (command line)")
    (error,) = run("rollout={parallel: {tp: 2}, num_engines: 4}", num_gpus=4)
    assert error.startswith("rollout.parallel needs 8 GPUs, there are 4")
    (error,) = run("cluster.gpus_per_node=8", num_gpus=4)
    assert "this machine has 4 GPUs" in error


def test_rules_have_names_of_their_own() -> None:
    assert len({rule.__name__ for rule in RULES}) == len(RULES)


def test_router_replay_needs_experts_that_a_swap_leaves(run) -> None:
    lag, replay = "batch.max_lag=1", "actor.moe.router_replay=rollout"
    (error,) = run(lag, replay, "rollout.swap=in_flight")
    assert "after a swap with rollout.swap = in_flight the engine names those of the new weights" in error
    assert run(lag, replay) == run(lag, replay, "rollout.swap=in_flight_keep_cache") == []
    assert run(lag, "actor.moe.router_replay=old_logp", "rollout.swap=in_flight") == []


def test_a_cache_is_not_kept_on_gpus_that_trainer_ranks_use(run) -> None:
    keeps = ("batch.max_lag=1", "rollout.swap=in_flight_keep_cache")
    assert run(*keeps) == []
    (error,) = run(*keeps, "cluster.gpus_per_node=8", here=False)
    assert "engines share GPUs with trainer ranks (cluster.gpus_per_node = 8)" in error
    (error,) = run(*keeps, num_gpus=4)
    assert "engines share GPUs with trainer ranks (this machine has 4)" in error
    assert run(*keeps, "cluster.gpus_per_node=0", num_gpus=4) == []


def test_fp16_is_refused_where_there_are_experts(run, spec) -> None:
    assert run("actor.precision=fp16") == []
    experts = dataclasses.replace(
        spec, family="qwen3_moe", num_experts=8, experts_per_token=2, expert_ffn_size=64
    )
    (error,) = run("actor.precision=fp16", spec=experts)
    assert error.startswith("actor.precision = fp16 has one loss scale, Qwen2.5-7B has experts")


def test_adapters_are_refused_where_the_model_has_no_place_for_them(run, spec) -> None:
    assert run("actor.lora={rank: 8}") == []
    assert "names no linear layer, or one twice" in run("actor.lora.targets=[qkv, qkv]")[0]
    experts = dataclasses.replace(spec, family="qwen3_moe", num_experts=4, expert_ffn_size=8)
    (said,) = [error for error in run("actor.lora={rank: 8}", spec=experts) if "lora" in error]
    assert "fc1, fc2" in said and "[qkv, proj]" in said


H100S = "cluster={gpus_per_node: 8, gpu: h100}"


def test_fp8_passes_where_gpus_and_sizes_allow_it(run) -> None:
    facts = {"here": False}
    for recipe in ("tensorwise", "blockwise"):
        assert run(f"actor.fp8={recipe}", "actor.bf16_layers=2", "actor.parallel.tp=4", H100S, **facts) == []
    assert run("actor.fp8=mxfp8", "cluster={gpus_per_node: 8, gpu: b200}", **facts) == []
    assert run("actor.fp8=tensorwise", num_gpus=8) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["actor.bf16_layers=2"], "actor.bf16_layers = 2 has no effect with actor.fp8 = none"),
        (["actor.fp8=tensorwise"], "actor.fp8 = tensorwise needs GPUs, this machine has none"),
        (["actor.fp8=tensorwise", "cluster.gpus_per_node=0"], "needs GPUs, cluster.gpus_per_node = 0"),
        (
            ["actor.fp8=mxfp8", H100S],
            "needs b200, cluster.gpu = h100  (command line): use tensorwise or blockwise",
        ),
        (["actor.fp8=tensorwise", "cluster={gpus_per_node: 8, gpu: a100}"], "cluster.gpu = a100"),
        (["actor.fp8=tensorwise", "actor.precision=fp16", H100S], "actor.precision = fp16"),
        (["actor.fp8=tensorwise", "actor.lora={rank: 8}", H100S], "actor.lora is not for these"),
        (["actor.fp8=tensorwise", "actor.bf16_layers=14", H100S], "use at most 13"),
        (["actor.fp8=tensorwise", "actor.bf16_layers=8", "actor.parallel.pp=4", H100S], "use at most 7"),
    ],
)
def test_fp8_is_refused_with_what_it_lacks(run, overrides: list[str], message: str) -> None:
    assert any(message in error for error in run(*overrides))


def test_fp8_asks_for_sizes_that_can_be_multiplied(run, spec) -> None:
    odd = dataclasses.replace(spec, ffn_size=4 * 1000)
    assert run("actor.fp8=tensorwise", "actor.parallel.tp=2", H100S, spec=odd, here=False) == []
    (said,) = run("actor.fp8=tensorwise", "actor.parallel.tp=4", H100S, spec=odd, here=False)
    assert (
        "multiples of 16" in said and "feed-forward columns 1000" in said and "actor.parallel.tp = 4" in said
    )
    (said,) = run("actor.fp8=tensorwise", "critic.parallel.tp=4", H100S, spec=odd, here=False)
    assert "critic.parallel.tp = 4" in said


@pytest.fixture
def examples(tmp_path: Path, run, spec: models.ModelSpec):
    """Errors of an sft config with these overrides, with the model and data of `run`."""
    file = tmp_path / "sft.yaml"
    source = {"model": str(tmp_path / "Qwen2.5-7B"), "data": {"train": str(tmp_path / "train.jsonl")}}
    file.write_text(json.dumps(source | {"run": {"name": "first"}}))

    def errors(*overrides: str, **facts: Any) -> list[str]:
        context = RuleContext(**({"num_gpus": 0, "spec": spec} | facts))
        return [str(error) for error in check(load_as(SFTConfig, file, overrides), context)]

    return errors


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (
            ["batch.examples_per_step=2", "actor.parallel.dp=4"],
            "actor.parallel.dp = 4 ranks share 2 examples of a step",
        ),
        (
            ["run.steps=10", "actor.optimizer.warmup_steps=10"],
            "actor.optimizer.warmup_steps = 10 never ends, the run has 10 optimizer steps",
        ),
        (["actor.optimizer.min_lr=1.0e-7"], "actor.optimizer.min_lr = 1e-07 has no effect"),
        (["actor.optimizer.betas=[0.9, 1.0]"], "actor.optimizer.betas = [0.9, 1.0]"),
    ],
)
def test_training_on_examples_is_checked_as_reinforcement_learning_is(examples, overrides, what) -> None:
    assert examples() == []
    (found,) = examples(*overrides)
    assert what in found
