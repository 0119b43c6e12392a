"""Memory and time where data-parallel ranks share the weights, as the FSDP backend's do."""

from dataclasses import replace
from typing import Any

import pytest

from hybridrl.config.training import LoraConfig, TrainParallel
from hybridrl.estimate import memory
from hybridrl.estimate.fit import cheapest_change, fullest
from hybridrl.estimate.gathered import gathered
from hybridrl.estimate.setting import Role, Setting
from hybridrl.estimate.time import logprobs_s, step_time, train_s
from hybridrl.models.spec import count, without_vocabulary
from tests.support.plan_values import make_setting


def setting(dp: int, *, microbatch_tokens: int = 16384, **axes: Any) -> Setting:
    made = make_setting("Qwen/Qwen2.5-7B-Instruct")
    train = made.train.model_copy(update={"dp": dp, **axes})
    return replace(made, backend="fsdp", microbatch_tokens=microbatch_tokens, train=train)


def with_reward_model() -> Setting:
    made = setting(8)
    scorer = without_vocabulary(made.model, head="value")
    return replace(made, frozen=("reward model",), reward_model=scorer)


def whole() -> int:
    return count(setting(1).model)


@pytest.mark.parametrize("dp", [1, 4, 8])
def test_ranks_share_weights_gradients_and_moments(dp: int) -> None:
    """Policy and reference are fp32 shards, and no fp32 copy comes on top."""
    held = memory.resident(setting(dp), 0)
    expected = {"policy": 4, "others": 4, "gradients": 4, "optimizer": 8}
    for name, width in expected.items():
        assert getattr(held, name) == pytest.approx(width * whole() / dp, rel=1e-3), name


@pytest.mark.parametrize(
    ("dp", "axes", "parts"),
    [(4, {"tp": 2}, 8), (4, {"cp": 2}, 8), (8, {"shard": 4}, 4), (2, {"tp": 2, "cp": 2, "shard": 2}, 4)],
)
def test_tensor_and_context_parallel_ranks_share_them_too_and_copies_do_not(dp, axes, parts) -> None:
    held = memory.resident(setting(dp, **axes), 0)
    assert held.policy == pytest.approx(4 * whole() / parts, rel=1e-3)
    assert held.optimizer == pytest.approx(8 * whole() / parts, rel=1e-3)


def test_tensor_parallel_ranks_gather_their_part() -> None:
    assert gathered(setting(4, tp=2), 2) == pytest.approx(gathered(setting(4), 2) / 2, rel=1e-3)


def test_copies_of_the_weights_gather_among_fewer_ranks_and_sum_their_gradients() -> None:
    """Two groups of four of eight ranks: 3 parts of a quarter in place of 7 of an eighth, for each gather."""
    made, copies = setting(8), setting(8, shard=4)
    assert made.gpu is not None
    link, microbatches = 0.7 * made.gpu.nvlink_bytes_s, memory.num_microbatches(made)
    gathers = 2 * microbatches * 2 * whole() * (3 / 4 - 7 / 8)
    sums = 4 * whole() * (3 / 4 - 7 / 8 + 2 * 1 / 2 / 4)
    more = train_s(copies) - train_s(made)
    adam = (28 * whole() / 4 - 28 * whole() / 8) / (0.75 * made.gpu.hbm_bytes_s)
    expected = ((gathers + sums) / link + adam) * made.batch.optimizer_steps
    assert more == pytest.approx(expected, rel=1e-3)


def test_adapters_alone_have_gradients() -> None:
    made = replace(setting(8), lora=LoraConfig())
    assert memory.resident(made, 0).policy == pytest.approx(4 * whole() / 8, rel=0.02)
    weights = gathered(made)
    assert weights == gathered(setting(8)) and gathered(made, 9) - weights < 0.02 * 4 * whole()


def test_exchanged_heads_of_grouped_queries_are_more_bytes_than_keys_of_two_ranks() -> None:
    """There are 28 query heads and 4 key-value heads: half of 2 x 28 + 8 heads against 8."""
    heads, keys = (setting(2, cp=2, cp_exchange=kind) for kind in ("heads", "keys"))
    assert heads.exchanges_heads and not keys.exchanges_heads
    assert logprobs_s(heads) > logprobs_s(keys)
    assert not setting(4, cp=2).exchanges_heads


def test_a_checkpoint_is_as_large_whatever_the_number_of_ranks() -> None:
    assert memory.checkpoint_bytes(setting(8)) == pytest.approx(12 * whole(), rel=1e-3)
    assert memory.least_training(setting(8)) == pytest.approx(20 * whole(), rel=1e-3)


def test_gradients_of_the_whole_model_wait_for_the_last_microbatch() -> None:
    """With one microbatch, those of two layers and of what is outside of them."""
    made, model = setting(8), setting(8).model
    outside = 2 * model.vocab_size * model.hidden_size + model.hidden_size
    two_layers = (whole() - outside) * 2 / model.num_layers
    weights = 2 * (outside + two_layers)
    assert gathered(made) == pytest.approx(weights)
    assert gathered(made, 1) == pytest.approx(weights + 4 * (outside + two_layers))
    assert gathered(made, 2) == gathered(made, 9) == pytest.approx(weights + 4 * whole())
    assert gathered(replace(made, backend="megatron"), 9) == 0.0


def test_the_fullest_moment_has_what_is_gathered() -> None:
    made = replace(setting(8), recompute="full")
    microbatches = memory.num_microbatches(made)
    more = memory.training(made, 0).activations - memory.activations(made, 0)
    assert microbatches > 1 and more == pytest.approx(gathered(made, microbatches))


def test_a_critic_on_dedicated_ranks_gathers_its_own_weights() -> None:
    made = replace(setting(8), trained=("actor", "critic"), dedicated=(("critic", TrainParallel(dp=8)),))
    alone = [made.alone(role) for role in made.trained]
    gathers = sum(gathered(own, memory.num_microbatches(own)) for own in alone)
    kept = sum(memory.activations(own, 0) for own in alone)
    assert memory.training(made, 0).activations == pytest.approx(kept + gathers)


def test_a_reward_model_that_scores_gathers_its_weights() -> None:
    sharded = with_reward_model()
    by_megatron = memory.scoring(replace(sharded, backend="megatron"), 0).activations
    more = memory.scoring(sharded, 0).activations - by_megatron
    assert more == pytest.approx(gathered(sharded.alone("reward model"))) and more > 0


@pytest.mark.parametrize(
    ("role", "is_dedicated", "width"),
    [("reference", False, 4), ("teacher", False, 4), ("reference", True, 2), ("teacher", True, 2)],
)
def test_models_built_to_be_evaluated_are_not_fp32(role: Role, is_dedicated: bool, width: int) -> None:
    """A reference or teacher on the actor's ranks is a copy of the policy's fp32 shards."""
    dedicated = ((role, TrainParallel(dp=8)),) if is_dedicated else ()
    made = replace(setting(8), frozen=(role,), dedicated=dedicated)
    assert memory.resident(made, 0).others == pytest.approx(width * whole() / 8, rel=1e-3)
    assert memory.least_training(made) == pytest.approx((16 + width) * whole(), rel=1e-3)
    if is_dedicated:
        assert memory.resident(made.alone(role), 0).all == pytest.approx(width * whole() / 8, rel=1e-3)


def test_a_reward_model_is_never_fp32() -> None:
    made = replace(with_reward_model(), offload="all")
    size = 2 * count(made.model_of("reward model")) / 8
    assert memory.resident(made, 0).others == pytest.approx(size, rel=1e-3)
    returned = memory.scoring(made, 0).weights - memory.rollout(made, 0).weights
    assert returned == pytest.approx(size, rel=1e-3)


def test_every_forward_pass_gathers_the_weights_of_its_model() -> None:
    """Here policy and reference compute log-probabilities; each rank gets 7 of 8 parts in bf16."""
    made = setting(8)
    assert made.gpu is not None
    passes = made.policy_passes + 1
    microbatches = memory.num_microbatches(made) * made.batch.optimizer_steps / made.batch.epochs
    moved = passes * microbatches * 2 * whole() * 7 / 8
    more = logprobs_s(made) - logprobs_s(replace(made, backend="megatron"))
    assert passes > 0 and more == pytest.approx(moved / (0.7 * made.gpu.nvlink_bytes_s), rel=1e-3)


def test_the_optimizer_reads_and_writes_its_fp32_weights() -> None:
    """On one rank nothing is sent. Two moments, gradient and weight are 28 bytes to read or write; with
    master weights beside bf16 weights, they are 30."""
    one = setting(1)
    assert one.gpu is not None
    less = train_s(replace(one, backend="megatron")) - train_s(one)
    moved = (30 - 28) * whole() * one.batch.optimizer_steps
    assert less == pytest.approx(moved / (0.75 * one.gpu.hbm_bytes_s), rel=0.01)
    in_fp32 = replace(one, half=False)
    assert train_s(replace(in_fp32, backend="megatron")) == pytest.approx(train_s(in_fp32))


def test_weights_are_gathered_for_every_microbatch() -> None:
    few, many = (step_time(setting(8, microbatch_tokens=tokens)).train for tokens in (65536, 4096))
    megatron = replace(setting(8, microbatch_tokens=4096), backend="megatron")
    assert many > few and many > step_time(megatron).train


def once(made: Setting) -> Setting:
    return replace(made, actor=made.actor.model_copy(update={"gather": "once"}))


def test_weights_that_are_gathered_once_are_held_whole_and_sent_once() -> None:
    made = setting(8)
    held = gathered(once(made), 2) - gathered(made, 2)
    outside = 2 * made.model.vocab_size * made.model.hidden_size + made.model.hidden_size
    layers = whole() - outside
    assert held == pytest.approx(2 * layers * (1 - 2 / made.model.num_layers))
    microbatches = memory.num_microbatches(made)
    assert microbatches > 1
    saved = train_s(made) - train_s(once(made))
    pass_s = saved / (2 * microbatches - 1)
    assert pass_s > 0
    assert logprobs_s(made) - logprobs_s(once(made)) == pytest.approx(
        pass_s * (microbatches - 1) * 2, rel=1e-3
    )
    megatron = replace(made, backend="megatron")
    assert gathered(once(megatron), 2) == 0.0 and train_s(once(megatron)) == train_s(megatron)


def kept_on_host(how: str, **options: Any) -> Setting:
    made = setting(8)
    return replace(made, actor=made.actor.model_copy(update={"keep_on_host": how}), **options)


def test_what_is_kept_on_the_host_takes_no_memory_of_a_gpu_and_the_memory_of_its_node() -> None:
    usual, moments, everything = (kept_on_host(how) for how in ("none", "optimizer", "all"))
    held = memory.resident(usual, 0)
    assert memory.resident(moments, 0) == replace(held, optimizer=0.0)
    assert memory.resident(everything, 0).all == 0
    node = [memory.host_bytes(one) / usual.gpus_per_node for one in (usual, moments, everything)]
    assert node[1] - node[0] == pytest.approx(held.optimizer + held.policy)  # and a copy of the weights
    assert node[2] - node[0] == pytest.approx(held.all)
    peaks = [fullest(one).peak for one in (usual, moments, everything)]
    assert peaks == sorted(peaks, reverse=True)


def test_what_is_kept_on_the_host_takes_time() -> None:
    usual, moments, everything = (kept_on_host(how) for how in ("none", "optimizer", "all"))
    assert usual.gpu is not None
    link, shard = 0.7 * usual.gpu.host_bytes_s, whole() / 8
    steps, device = usual.batch.optimizer_steps, 28 * shard / (0.75 * usual.gpu.hbm_bytes_s)
    assert train_s(moments) - train_s(usual) == pytest.approx(
        steps * ((28 + 12) * shard / link - device), rel=1e-3
    )
    copies = 2 * memory.num_microbatches(usual) * 4
    assert train_s(everything) - train_s(usual) == pytest.approx(
        steps * ((28 + 4 + copies) * shard / link - device), rel=1e-3
    )
    assert logprobs_s(moments) == logprobs_s(usual) < logprobs_s(everything)


def test_without_gpus_all_is_on_the_host_anyway() -> None:
    usual, everything = (kept_on_host(how, gpu=None) for how in ("none", "all"))
    assert memory.on_cpu(everything) == memory.on_cpu(usual)


def test_a_model_that_does_not_fit_otherwise_is_kept_on_the_host() -> None:
    made = setting(8, microbatch_tokens=5120)
    assert made.gpu is not None
    engine = made.engine.model_copy(update={"tp": 4})
    small = replace(made.gpu, memory_bytes=54e9)
    tight = replace(made, gpu=small, engine=engine, recompute="full", offload="all").filled(dp=8)
    change = cheapest_change(tight)
    assert change is not None and change.text == "actor.keep_on_host = optimizer"
