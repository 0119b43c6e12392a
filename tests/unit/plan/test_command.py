import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from hybridrl.config.load import load, load_as
from hybridrl.config.sft_rm import RMConfig, SFTConfig
from hybridrl.errors import ConfigError, ConfigErrors, HybridRLError, ResourceError
from hybridrl.estimate import memory
from hybridrl.estimate.engine import engine_weights, kv_tokens
from hybridrl.estimate.memory import training
from hybridrl.estimate.time import step_time
from hybridrl.hosts.machine import Machine
from hybridrl.models.tiny import olmo2_arithmetic
from hybridrl.plan import command as planning
from hybridrl.plan import plan_report, proposals
from tests.support.plan_values import write_cluster_config

BARE = Machine(cores=2, memory_bytes=2**34, available_bytes=2**34, shm_bytes=2**33, gpus=())
QUICKSTART = Path(__file__).parents[3] / "configs/quickstart.yaml"
QUICKSTART_FSDP = QUICKSTART.with_name("quickstart_fsdp.yaml")
SEARCH = planning.Request(search=True, gpus=None, mean_response=None)
FREE = ("actor.parallel={}", "rollout.parallel={}", "rollout.max_response_tokens=2048")
PLAIN = planning.Request(search=False, gpus=None, mean_response=None)


def planned(folder: Path, *overrides: str, request: planning.Request = PLAIN) -> planning.Plan:
    return planning.plan(load(write_cluster_config(folder), overrides), BARE, request)


def test_a_plan_counts_turns_context_and_the_time_of_environments(tmp_path: Path) -> None:
    several = (
        "environment={name: guess, max_turns: 4, step_timeout_s: 20.0}",
        "rollout.max_context_tokens=9216",
    )
    found = planned(tmp_path, "rollout.max_response_tokens=2048", *several)
    said = "\n".join(f"{heading} {text}" for heading, text in plan_report.lines(found))
    assert "up to 4 turns of at most 2,048 tokens in a context of 9,216" in said
    assert "its environment may take up to 80 s in all" in said
    assert found.setting.batch.longest == 9216
    single = "\n".join(text for _, text in plan_report.lines(planned(tmp_path)))
    assert "turns of at most" not in single


def test_a_plan_of_a_cluster_run_needs_no_gpu_and_says_all(tmp_path: Path) -> None:
    found = planned(tmp_path)
    said = "\n".join(f"{heading} {text}" for heading, text in plan_report.lines(found))
    for part in ("BATCH", "8,192 trajectories", "75.5 M tokens", "MEMORY", "80.0 GB", "TIME", "MFU", "OK"):
        assert part in said
    told = plan_report.as_dict(found)
    assert told["fits"] and set(told["time_s"]) == {"a100-40", "a100", "h100", "h200", "b200"}
    assert max(phase["peak"] for phase in told["memory"]) <= told["gpu_bytes"]


def test_a_plan_of_engines_with_dedicated_gpus_counts_both_and_the_broadcast(tmp_path: Path) -> None:
    separate = ("cluster.placement=separate", "rollout.num_engines=8", "actor.offload=none")
    found = planned(tmp_path, *separate, "batch.max_lag=1")
    said = "\n".join(f"{heading} {text}" for heading, text in plan_report.lines(found))
    for part in (
        "devices: trainer 64 GPUs, engines 64 GPUs of their own",
        "at the same time",
        "of a step for",
    ):
        assert part in said
    assert "1.000 x the least possible, each byte once per node" in said and "placement" not in said.split()
    waiting = "\n".join(text for _, text in plan_report.lines(planned(tmp_path, *separate)))
    assert "trainer and engines wait for each other" in waiting
    assert plan_report.as_dict(found)["time_s"]["h100"]["overlap"] > 0


def test_engines_of_a_judge_are_named_and_counted(tmp_path: Path) -> None:
    judged = "reward={name: judge, prompt: '{response}'}"
    model = "path: Qwen/Qwen2.5-14B-Instruct, max_prompt_tokens: 512"
    found = planned(tmp_path, judged, f"judge={{{model}, tp: 4, memory_fraction: 0.1}}")
    said = "\n".join(text for _, text in plan_report.lines(found))
    assert "judge (Qwen/Qwen2.5-14B-Instruct): 1 x TP4, 8.0 GB of each of their GPUs" in said
    assert plan_report.as_dict(found)["served_bytes"] == pytest.approx(8e9)
    with pytest.raises(ConfigErrors, match=r"judge: a GPU would hold 29\.\d GB of its weights"):
        planned(tmp_path, judged, f"judge={{{model}, tp: 1, memory_fraction: 0.1}}")


def test_models_beside_the_policy_are_named_with_their_place(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForSequenceClassification"],
        "id2label": {"0": "reward"},
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
    }
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "config.json").write_text(json.dumps(config))
    save_file({"score.weight": np.zeros((1, 1))}, tmp_path / "judge" / "model.safetensors")
    without = planned(tmp_path)
    found = planned(tmp_path, f"reward_model={{path: {tmp_path / 'judge'}, parallel: {{tp: 4}}}}")
    said = "\n".join(text for _, text in plan_report.lines(found))
    assert "reference: on the actor's ranks; reward model (llama, 7,504.9 M parameters): 32 x (TP4)" in said
    assert training(found.setting, 0).weights - training(without.setting, 0).weights > 2 * 7.5e9 / 4


@pytest.mark.parametrize("preset", ["copg", "a_star_po"])
def test_a_loss_that_compares_with_the_reference_has_it_in_memory_and_time(preset: str) -> None:
    def cost(*overrides: str) -> tuple[float, float]:
        """(GB of the trainer's weights on a GPU, seconds of log-probabilities)"""
        found = planning.plan(load("configs/grpo_qwen72b.yaml", overrides), BARE, PLAIN)
        return training(found.setting, 0).weights / 1e9, step_time(found.setting).logprobs

    without_kl = "algorithm.kl={coefficient: 0.0}"
    alone, with_reference = cost(without_kl), cost(f"algorithm.preset={preset}", without_kl)
    assert with_reference == cost() == pytest.approx((9.4, 242), rel=0.01)
    assert alone == pytest.approx((4.7, 121), rel=0.01)


VALUED = """\
from hybridrl.algorithms.base import Advantage

class Valued:
    needs = frozenset({'value'})

    def __call__(self, reward_N, group_N, tokens, reduce, value_T):
        return Advantage(reward_N[tokens.seq_T] - value_T)
"""


def test_a_plugin_from_outside_says_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside_plan.py").write_text(VALUED)
    monkeypatch.syspath_prepend(tmp_path)
    valued = "algorithm.estimator=outside_plan:Valued"
    assert planned(tmp_path, valued, "actor.parallel.pp=8").setting.trained == ("actor", "critic")
    with pytest.raises(ConfigError, match="has no 'Vlued'.*command line"):
        planned(tmp_path, "algorithm.estimator=outside_plan:Vlued")
    with pytest.raises(ConfigError, match="corrections has no 'bypas'.*command line"):
        planned(tmp_path, "algorithm.correction=[bypas]")


def test_too_few_gpus_are_refused_with_both_numbers_and_the_change(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="64 ranks.*the cluster 8 GPUs.*or cluster.nodes=8") as refused:
        planned(tmp_path, "cluster.nodes=1")
    assert refused.value.exit_code == 2
    text = str(planned(tmp_path, "cluster.nodes=1", request=replace(PLAIN, search=True)).refusal)
    assert "64 GPUs" in text and "80.0 GB" in text and "cheapest change that fits: cluster.nodes = 8" in text


def test_the_change_that_a_refusal_names_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as refused:
        planned(tmp_path, "actor.offload=none")
    key, _, value = refused.value.fix.removeprefix("cheapest change that fits: ").partition(" = ")
    assert planned(tmp_path, "actor.offload=none", f"{key}={value.split()[0]}").refusal is None


def test_the_swap_is_that_of_the_gpus_that_were_asked_for(tmp_path: Path) -> None:
    gpus = [planned(tmp_path, request=replace(PLAIN, gpus=count)).swap for count in (None, 64)]
    assert [swap and swap.num_engine_ranks for swap in gpus] == [128, 64]


def test_a_search_goes_on_where_the_config_does_not_fit(tmp_path: Path) -> None:
    request = planning.Request(search=True, gpus=64, mean_response=None)
    found = planned(tmp_path, "actor.parallel.pp=8", request=request)
    assert found.proposals and found.setting.num_gpus == 64
    best = found.proposals[0].setting
    overrides = [f"{key}={value}" for key, value in proposals.keys(best).items()]
    assert planned(tmp_path, "cluster.nodes=8", *overrides).refusal is None


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("algorithm.estimator=nothing", "no 'nothing'"),
        ("cluster={nodes: 16, gpus_per_node: 8}", "the GPU model is unknown"),
        ("cluster={nodes: 1, gpu: h100}", "set it to the GPUs of a node"),
    ],
)
def test_a_wrong_config_is_refused_first(tmp_path: Path, override: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        planned(tmp_path, override)


SFT_YAML = """\
model: Qwen/Qwen2.5-7B-Instruct
data: {train: examples.jsonl}
batch: {examples_per_step: 256}
actor: {parallel: {tp: 4}}
cluster: {gpus_per_node: 8, gpu: h100}
run: {name: tuned}
"""


def planned_for(kind: Any, folder: Path, *overrides: str, **options: Any) -> planning.Plan:
    path = folder / "examples.yaml"
    path.write_text(SFT_YAML)
    request = replace(PLAIN, **options)
    return planning.plan_examples(load_as(kind, path, overrides), BARE, request)


def test_a_plan_for_examples_has_neither_engines_nor_swap(tmp_path: Path) -> None:
    found = planned_for(SFTConfig, tmp_path, mean_response=1000)
    said = "\n".join(f"{heading} {text}" for heading, text in plan_report.lines(found))
    for part in (
        "256 examples -> 1 optimizer step, about 8 microbatches",
        "2 x (TP4)",
        "train",
        "TIME",
        "OK",
    ):
        assert part in said
    assert not any(part in said for part in ("rollout", "logprobs", "swap", "engines"))
    told = plan_report.as_dict(found)
    assert told["swap"] is None and all(not phase["engine"] and not phase["kv"] for phase in told["memory"])
    time = told["time_s"]["h100"]
    assert time["total"] == time["train"] > 0


def test_a_reward_model_learns_from_two_answers_and_has_no_logits(tmp_path: Path) -> None:
    answers, pairs = (planned_for(kind, tmp_path).setting for kind in (SFTConfig, RMConfig))
    assert pairs.batch.trajectories == 2 * answers.batch.trajectories
    assert pairs.model.value_head and not answers.model.value_head
    assert memory.checkpoint_bytes(pairs) < memory.checkpoint_bytes(answers)


@pytest.mark.parametrize(
    ("overrides", "options", "match"),
    [
        (["actor.lora={rank: 8}"], {}, "actor.lora has no effect"),
        (["actor.parallel.tp=3"], {}, "does not divide the 28 attention heads"),
        ([], {"search": True}, "has no engines"),
        (["cluster.gpu=a100", "actor.fp8=tensorwise"], {}, "cluster.gpu = a100"),
        (["actor.parallel.tp=1"], {}, "does not fit"),
    ],
)
def test_a_plan_for_examples_refuses_what_cannot_work(
    tmp_path: Path, overrides: list[str], options: dict[str, Any], match: str
) -> None:
    with pytest.raises(HybridRLError, match=match):
        planned_for(SFTConfig, tmp_path, *overrides, **options)


def test_fp8_is_planned_and_refused_without_gpus_that_have_it(tmp_path: Path) -> None:
    plain, found = planned(tmp_path), planned(tmp_path, "actor.fp8=blockwise", "actor.bf16_layers=4")
    said = "\n".join(text for _, text in plan_report.lines(found))
    assert "90% of the layers in FP8" in said
    times = [plan_report.as_dict(one)["time_s"]["h100"]["train"] for one in (plain, found)]
    assert times[1] < 0.85 * times[0]
    with pytest.raises(ConfigError, match="needs GPUs, this machine has none"):
        planned(tmp_path, "actor.fp8=tensorwise", "cluster={nodes: 1}")


def test_adapters_are_planned_where_they_train(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Transformer Engine's layers take no adapters yet"):
        planned(tmp_path, "actor.lora={rank: 8}")
    adapters = load("configs/quickstart.yaml", ["actor.lora={rank: 8}"])
    said = "\n".join(text for _, text in plan_report.lines(planning.plan(adapters, BARE, PLAIN)))
    assert "only adapters of rank 8 are trained" in said


def test_a_plan_imports_no_torch(tmp_path: Path) -> None:
    path = write_cluster_config(tmp_path)
    code = (
        "import sys; from hybridrl.cli import main; "
        f"assert main(['plan', {str(path)!r}]) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_of_a_kind_is_named_in_the_singular() -> None:
    one = ["batch={prompts_per_step: 1}", "algorithm.samples_per_prompt=1"]
    loaded = load(QUICKSTART, [*one, "algorithm.preset=null", "algorithm.estimator=reinforce_plus_plus"])
    said = " ".join(text for _, text in plan_report.lines(planning.plan(loaded, BARE, PLAIN)))
    assert "1 prompt x 1 sample = 1 trajectory/step" in said
    assert "1 trajectory a minibatch -> 1 optimizer step (0 of them" in said
    assert "about 1 microbatch of" in said and "on 1 data-parallel rank" in said


def test_a_search_tries_every_backend_that_has_the_model(tmp_path: Path) -> None:
    both = planned(tmp_path, "model=Qwen/Qwen2.5-7B-Instruct", "cluster.nodes=1", *FREE, request=SEARCH)
    backends = [proposal.setting.backend for proposal in both.proposals]
    assert set(backends) == {"megatron", "fsdp"} and len(backends) == 5
    assert [p.time.total for p in both.proposals] == sorted(p.time.total for p in both.proposals)
    first = {b: next(p.setting for p in both.proposals if p.setting.backend == b) for b in set(backends)}
    assert proposals.keys(first["fsdp"])["actor.backend"] == "fsdp"
    assert first["fsdp"].recompute != "selective"
    once = next(p.setting for p in both.proposals if p.setting.gathers_once)
    assert proposals.keys(once)["actor.gather"] == "once"
    assert proposals.keys(first["megatron"])["actor.gather"] == "each_pass", "the config may say once"
    gemma = planned(tmp_path, "model=google/gemma-2-27b-it", "cluster.nodes=4", *FREE, request=SEARCH)
    assert {proposal.setting.backend for proposal in gemma.proposals} == {"megatron"}


def test_a_proposal_to_give_engines_their_own_gpus_is_accepted(tmp_path: Path) -> None:
    free = (*FREE, "actor.offload=none", "rollout.swap=in_flight")
    asked = ("model=Qwen/Qwen2.5-7B-Instruct", "cluster.nodes=2", "batch.max_lag=1", *free)
    found = planned(tmp_path, *asked, request=SEARCH)
    separate = next(p for p in found.proposals if p.setting.separate)
    taken = [f"{key}={value}" for key, value in proposals.keys(separate.setting).items()]
    assert "cluster.placement=separate" in taken
    again = planned(tmp_path, *asked, *taken)
    assert again.refusal is None
    assert step_time(again.setting).total == pytest.approx(separate.time.total)


def test_a_search_says_what_older_answers_would_give(tmp_path: Path) -> None:
    asked = ("model=Qwen/Qwen2.5-7B-Instruct", "cluster.nodes=2", *FREE)
    found = planned(tmp_path, *asked, request=SEARCH)
    assert found.overlapped is not None and not any(p.setting.separate for p in found.proposals)
    said = " ".join(text for _, text in plan_report.lines(found))
    assert "with answers up to one update old, " in said
    taken = [f"{key}={value}" for key, value in proposals.older_keys(found.overlapped.setting).items()]
    assert {"batch.max_lag=1", "cluster.placement=separate"} <= set(taken)
    again = planned(tmp_path, *asked, *taken)
    assert again.refusal is None and again.overlapped is None
    assert step_time(again.setting).total == pytest.approx(found.overlapped.time.total)
    assert planned(tmp_path, *asked, *taken, request=SEARCH).overlapped is None


@pytest.mark.parametrize(
    ("model", "parallel"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "{pp: 2, stage_layers: [15, 13]}"),
        ("Qwen/Qwen3-30B-A3B", "{tp: 2, ep: 2, etp: 2}"),
    ],
)
def test_the_keys_of_a_proposal_lead_from_the_config_to_it(tmp_path: Path, model: str, parallel: str) -> None:
    options = (*FREE, f"model={model}", "cluster.nodes=2", f"actor.parallel={parallel}")
    for proposal in planned(tmp_path, *options, request=SEARCH).proposals:
        taken = [f"{key}={value}" for key, value in proposals.keys(proposal.setting).items()]
        actor = load(tmp_path / "cluster.yaml", [*options, *taken]).config.actor
        assert (actor.backend, actor.parallel) == (proposal.setting.backend, proposal.setting.train)


def test_a_search_keeps_an_option_that_one_backend_lacks(tmp_path: Path) -> None:
    options = ("model=Qwen/Qwen2.5-7B-Instruct", "cluster.nodes=1", "actor.precision=fp16", *FREE)
    found = planned(tmp_path, *options, request=SEARCH)
    assert {proposal.setting.backend for proposal in found.proposals} == {"megatron"}


def test_the_swap_of_a_model_without_a_table_is_that_of_its_loader(tmp_path: Path) -> None:
    olmo2_arithmetic(tmp_path / "olmo", 0)
    options = [f"model={{path: {tmp_path / 'olmo'}}}", "batch.max_lag=1"]
    for swap in ("drain", "in_flight"):
        found = planning.plan(load(QUICKSTART_FSDP, [*options, f"rollout.swap={swap}"]), BARE, PLAIN)
        said = dict(plan_report.lines(found))
        assert found.swap is None and ("in flight" in said) == (swap == "in_flight")
        assert said["swap"].startswith("1.6 MB through host memory into the loaders of 1 engine: there is no")


def test_fp8_in_the_engines_halves_their_weights_and_the_swap(tmp_path: Path) -> None:
    sizes = ("model=Qwen/Qwen3-32B", "actor.parallel={tp: 8, pp: 2}", "rollout.parallel={tp: 4}")
    plain = planned(tmp_path, *sizes)
    found = planned(tmp_path, *sizes, "rollout.precision=fp8", "rollout.kv_cache_precision=fp8")
    weights, cache = engine_weights(found.setting), kv_tokens(found.setting)
    assert 0.5 < weights / engine_weights(plain.setting) < 0.54  # embedding and output layer stay bf16
    assert cache > 2 * kv_tokens(plain.setting)
    assert found.swap and plain.swap
    assert 0.5 < found.swap.written_bytes / plain.swap.written_bytes < 0.54
    network = found.swap.node_bytes + found.swap.remote_bytes
    assert network == pytest.approx(found.swap.bound_bytes, rel=1e-9)
    assert step_time(found.setting, found.swap).generate < 0.8 * step_time(plain.setting, plain.swap).generate
    said = "\n".join(text for _, text in plan_report.lines(found))
    assert "engines: 32 x TP4 with FP8 weights and cache" in said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["rollout.precision=fp8"],  # TP8 of a 72B model
            "rollout.parallel: layers.*.gate_up has a part of 3696 rows on each of 8 ranks",
        ),
        (
            ["model=Qwen/Qwen2.5-0.5B-Instruct", "actor.parallel={tp: 2}", "rollout.parallel={}"],
            "rollout.precision = fp8: trainer ranks divide layers.*.qkv within a block of 128 x 128",
        ),
        (
            ["model=Qwen/Qwen3-32B", "rollout={engine: vllm, parallel: {tp: 4}}"],
            "rollout.precision = fp8: rollout.engine = vllm is started in bf16 only",
        ),
    ],
)
def test_fp8_that_cannot_be_swapped_is_refused_by_a_plan(tmp_path: Path, overrides, said) -> None:
    with pytest.raises(ConfigErrors) as error:
        planned(tmp_path, *overrides, "rollout.precision=fp8")
    assert said in str(error.value)
