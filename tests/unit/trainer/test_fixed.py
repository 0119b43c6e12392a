"""Which parameters no step changes, as the ranks of both backends agree."""

import pytest
import torch
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.config.training import LoraConfig, TrainParallel
from hybridrl.layout.hf import HFLayout
from hybridrl.models.spec import read


def first_step(rank, rendezvous, folder, groups):
    """By the name of a group of ranks: what it says is fixed, and this rank's parameters that a step has
    left as they were and has changed."""
    import trainer_scenarios as scenarios

    found = {}
    for name, (shape, backend, targets) in groups.items():
        lora = LoraConfig(rank=4, alpha=8.0, targets=targets)
        actor = values.make_actor().model_copy(update={"backend": backend, "lora": lora})
        with scenarios.policy(rank, rendezvous, folder, shape, actor=actor) as trained:
            shards = trained.layout.shards(rank)
            before = {n: tensor.clone() for n, tensor in trained.tensors().items()}
            batch = values.make_batch([scenarios.split(0, scenarios.dp_of(shape), (6,))])
            scenarios.play(trained, batch)
            same = {n: torch.equal(t, before[n]) for n, t in trained.tensors().items()}
            left, changed = ({shards[n].param for n in same if same[n] is one} for one in (True, False))
            found[name] = trained.fixed, left, changed
    return found


GROUPS = {
    "megatron": (TrainParallel(pp=2, dp=1), "megatron", ("qkv", "fc2")),
    "fsdp": (TrainParallel(dp=2), "fsdp", ("qkv", "fc2")),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return values.make_model(tmp_path_factory.mktemp("models"), "qwen3")


def test_what_has_no_adapter_is_fixed_if_adapters_are_trained(model) -> None:
    names = {shard.param for shard in HFLayout(read(model)).shards(0).values()}
    ranks = on_ranks(2, first_step, model, GROUPS)
    for name in GROUPS:
        fixed = {n for n in names if not n.endswith((".qkv", ".down"))}
        assert [set(rank[name][0]) for rank in ranks] == [fixed, fixed], name
        left, changed = (set().union(*(rank[name][i] for rank in ranks)) for i in (1, 2))
        assert fixed <= left and changed == names - fixed, name
