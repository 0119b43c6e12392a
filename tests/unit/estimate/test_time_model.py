from dataclasses import replace

import pytest

from hybridrl.config.training import LoraConfig, TrainParallel
from hybridrl.errors import ConfigError
from hybridrl.estimate import flops
from hybridrl.estimate.fit import cheapest_change, fits
from hybridrl.estimate.gpus import GPUS, recognise
from hybridrl.estimate.search import Proposal, search
from hybridrl.estimate.time import generate_s, logprobs_s, recompute_s, recomputed_tokens, step_time, train_s
from tests.support.plan_values import make_setting


def test_a_dense_models_operations_are_six_a_weight_and_token() -> None:
    """Qwen2.5-7B: 7.62 B weights, of which 0.54 B are the embedding; attention at length 0 is free."""
    model = make_setting("Qwen/Qwen2.5-7B-Instruct").model
    one = flops.forward(model, mean_length=0.0, trained_share=1.0)
    assert 3 * one == pytest.approx(6 * (7.616e9 - 152064 * 3584), rel=1e-3)


def test_a_mixture_computes_with_the_experts_that_are_chosen() -> None:
    """Qwen3-30B-A3B: 3.3 B active weights, 0.6 B of them in embedding and output layer."""
    model = make_setting("Qwen/Qwen3-30B-A3B").model
    assert flops.active_weights(model) == pytest.approx(3.35e9 - 2 * 151936 * 2048, rel=0.02)


def test_attention_grows_with_the_square_of_the_length() -> None:
    model = make_setting("Qwen/Qwen2.5-7B-Instruct").model
    base, short, long = (flops.forward(model, mean_length=n, trained_share=1.0) for n in (0, 1000, 2000))
    assert long - base == pytest.approx(2 * (short - base))


def test_a_step_is_faster_on_faster_gpus() -> None:
    setting = make_setting("Qwen/Qwen2.5-7B-Instruct")
    totals = [step_time(replace(setting, gpu=GPUS[name])).total for name in ("a100", "h100", "h200", "b200")]
    assert totals == sorted(totals, reverse=True)
    assert all(0.2 < step_time(replace(setting, gpu=gpu)).mfu < 0.6 for gpu in GPUS.values())


def test_a_swap_in_flight_computes_the_cache_of_running_requests_again() -> None:
    """512 x 16 answers of 1,024 + 2,048 tokens on 8 engines: 256 run at once, half-way through on average."""
    setting = make_setting("Qwen/Qwen2.5-7B-Instruct").filled(dp=8, num_engines=8)
    setting = replace(setting, running_requests=256, kv_cache_tokens=10**9)
    context = setting.batch.mean_prompt + setting.batch.mean_response / 2
    assert recomputed_tokens(setting) == pytest.approx(256 * context)
    operations = 256 * context * 2 * flops.active_weights(setting.model)
    assert recompute_s(setting) == pytest.approx(operations / (GPUS["h100"].flops * 0.6))
    assert recompute_s(replace(setting, gpu=GPUS["a100"])) > 2 * recompute_s(setting)


def test_fp8_speeds_up_training_on_gpus_that_have_it() -> None:
    """Attention, output layer, links and optimizer stay: a step gains less than its products."""
    plain = make_setting("Qwen/Qwen2.5-72B-Instruct", nodes=8).with_sharding(tp=4, pp=2)
    for name, gain in (("a100", 1.0), ("h100", 1.3), ("b200", 1.3)):
        on = replace(plain, gpu=GPUS[name])
        faster = train_s(on) / train_s(replace(on, fp8_share=1.0))
        assert faster == pytest.approx(gain, abs=0.1 * (gain > 1)), name
        assert faster <= 1.5
    assert generate_s(plain) == generate_s(replace(plain, fp8_share=1.0))


def test_frozen_weights_cost_two_thirds_of_a_training_pass() -> None:
    """No gradient of a weight: two products of three, and nothing to sum over ranks."""
    whole = make_setting("Qwen/Qwen2.5-7B-Instruct")
    adapters = replace(whole, lora=LoraConfig(rank=16))
    assert 0.6 < train_s(adapters) / train_s(whole) < 0.72
    assert logprobs_s(adapters) == logprobs_s(whole)


def test_a_critic_on_ranks_of_its_own_is_timed_by_its_own_cut() -> None:
    """Dedicated ranks with equal sizes take as long as shared ones; a long pipeline has idle stages."""
    actor = make_setting("Qwen/Qwen2.5-7B-Instruct").with_sharding(tp=2)
    shared = replace(actor, trained=("actor", "critic"))
    same = replace(shared, dedicated=(("critic", actor.train),))
    assert train_s(same) == pytest.approx(train_s(shared))
    assert train_s(shared) < 2 * train_s(actor)  # a head of one number
    deep = replace(
        shared, dedicated=(("critic", TrainParallel(tp=2, pp=4)),), dedicated_tokens=(("critic", 262144),)
    )
    assert train_s(deep) > train_s(shared)


def test_a_search_is_never_worse_than_what_it_begins_with() -> None:
    setting = replace(make_setting("Qwen/Qwen2.5-72B-Instruct", nodes=8), offload="all", recompute="full")
    setting = replace(
        setting.with_sharding(tp=8, pp=4), engine=setting.engine.model_copy(update={"tp": 8})
    ).filled()
    assert fits(setting)
    found = search(setting)
    assert all(fits(proposal.setting) and proposal.spare_bytes >= 0 for proposal in found)
    assert found[0].time.total <= Proposal.of(setting).time.total


def test_the_cheapest_change_makes_it_fit_and_is_cheap() -> None:
    """A 7B model whose microbatches are too long for the memory that its state leaves."""
    setting = replace(make_setting("Qwen/Qwen2.5-7B-Instruct").with_sharding(tp=2), offload="all")
    setting = replace(setting, microbatch_tokens=65536)
    assert not fits(setting)
    change = cheapest_change(setting)
    assert change is not None and fits(change.setting)
    assert change.setting.num_gpus == setting.num_gpus


def test_what_no_single_key_repairs_has_no_cheapest_change() -> None:
    assert cheapest_change(make_setting("deepseek-ai/DeepSeek-V3")) is None


@pytest.mark.parametrize(
    ("name", "gib", "key"),
    [
        ("NVIDIA H100 80GB HBM3", 79.6, "h100"),
        ("NVIDIA A100-SXM4-40GB", 40, "a100-40"),
        ("NVIDIA A100-SXM4-80GB", 80, "a100"),
    ],
)
def test_a_drivers_name_is_recognised(name: str, gib: float, key: str) -> None:
    assert recognise(name, int(gib * 2**30)) is GPUS[key]


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="no data for GPU"):
        recognise("GeForce", 2**34)
