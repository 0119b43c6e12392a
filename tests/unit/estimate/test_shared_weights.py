"""Memory and time where data-parallel ranks share the weights, as the FSDP backend's do."""

from dataclasses import replace

import pytest

from hybridrl.estimate import memory
from hybridrl.estimate.setting import Setting
from hybridrl.estimate.time import step_time
from hybridrl.models.spec import count
from tests.support.plan_values import make_setting


def setting(dp: int, *, microbatch_tokens: int = 16384) -> Setting:
    made = make_setting("Qwen/Qwen2.5-7B-Instruct")
    train = made.train.model_copy(update={"dp": dp})
    return replace(made, backend="fsdp", microbatch_tokens=microbatch_tokens, train=train)


def whole() -> int:
    return count(setting(1).model)


@pytest.mark.parametrize("dp", [1, 4, 8])
def test_ranks_share_weights_gradients_and_moments(dp: int) -> None:
    """Policy and reference are fp32 shards, and no fp32 copy comes on top."""
    held = memory.resident(setting(dp), 0)
    expected = {"policy": 4, "others": 4, "gradients": 4, "optimizer": 8}
    for name, width in expected.items():
        assert getattr(held, name) == pytest.approx(width * whole() / dp, rel=1e-3), name


def test_a_checkpoint_is_as_large_whatever_the_number_of_ranks() -> None:
    assert memory.checkpoint_bytes(setting(8)) == pytest.approx(12 * whole(), rel=1e-3)
    assert memory.least_training(setting(8)) == pytest.approx(20 * whole(), rel=1e-3)


def test_gradients_of_the_whole_model_wait_for_the_last_microbatch() -> None:
    """Layers are a minor part with one microbatch, and all of the model with several."""
    several, model = setting(8), setting(8).model
    one = replace(several, microbatch_tokens=2**40, recompute="full")
    again = replace(several, recompute="full")
    assert memory.num_microbatches(one) == 1 < memory.num_microbatches(again)
    layer = (whole() - 2 * model.vocab_size * model.hidden_size) / model.num_layers
    outside = whole() - model.num_layers * layer
    more = memory._gathered(again, backward=True) - memory._gathered(one, backward=True)
    assert more == pytest.approx(4 * (whole() - outside - 2 * layer), rel=1e-2)
    assert memory._gathered(again, backward=False) == pytest.approx(2 * (outside + 2 * layer), rel=1e-2)


def test_weights_are_gathered_for_every_microbatch() -> None:
    few, many = (step_time(setting(8, microbatch_tokens=tokens)).train for tokens in (65536, 4096))
    megatron = replace(setting(8, microbatch_tokens=4096), backend="megatron")
    assert many > few and many > step_time(megatron).train
