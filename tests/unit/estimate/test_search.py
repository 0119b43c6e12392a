"""A search proposes only what a launch accepts, and names the fastest setting of every backend."""

from dataclasses import replace
from typing import Any

import pytest

from hybridrl.config.training import LoraConfig
from hybridrl.estimate.memory import phases
from hybridrl.estimate.search import search
from hybridrl.estimate.setting import Setting
from hybridrl.layout.trainers import layout_of
from tests.support.plan_values import make_setting


def setting(backend: str, **keys: Any) -> Setting:
    made = make_setting("Qwen/Qwen2.5-0.5B")
    return replace(made, backend=backend, train=made.train.model_copy(update=keys))


@pytest.mark.parametrize(
    ("backend", "keys"),
    [("fsdp", {"cp_exchange": "heads"}), ("megatron", {"sp": True}), ("fsdp", {"shard": 4})],
)
def test_keys_of_the_config_fit_every_proposal(backend: str, keys: dict[str, Any]) -> None:
    """Those that a search does not vary stay in the config."""
    found = search(setting(backend, **keys), count=20)
    assert backend in {proposal.setting.backend for proposal in found}
    for one in (proposal.setting for proposal in found):
        layout_of(one.backend).refuse_keys(one.model, one.train)
        for key in keys.keys() & {"sp", "cp_exchange"}:
            assert getattr(one.train, key) == keys[key]


def test_adapters_on_gpus_are_proposed_with_the_backend_that_trains_them() -> None:
    found = search(replace(setting("fsdp"), lora=LoraConfig()))
    assert {proposal.setting.backend for proposal in found} == {"fsdp"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_fastest_settings_are_returned_and_the_fastest_of_every_backend(count: int) -> None:
    made = setting("fsdp")
    every = search(made, count=1000)
    first = {p.setting.backend: p for p in reversed(every)}
    found = search(made, count=count)
    assert len(first) == 2 and len(found) == max(count, 2)
    assert found[0] == every[0] and all(leader in found for leader in first.values())


def test_engines_that_keep_their_cache_get_a_share_that_leaves_room_for_a_step() -> None:
    found = search(replace(setting("megatron"), engines_sleep=False))
    assert found
    for one in (proposal.setting for proposal in found):
        assert one.offload == "none"  # offloading is for engines that sleep
        assert one.gpu is not None
        assert max(phase.peak for phase in phases(one)) <= one.gpu.memory_bytes
