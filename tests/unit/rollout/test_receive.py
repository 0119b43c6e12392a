"""The parameters of a model, given to others in place."""

import pytest
import torch
from torch import nn

from hybridrl.errors import EngineError
from hybridrl.reshard.buckets import Bucket
from hybridrl.reshard.checksum import checksum
from hybridrl.reshard.transports import shm
from hybridrl.rollout.sglang import receive


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.LayerNorm(4)
        self.register_buffer("rotary", torch.arange(4.0))

    def forward(self, token):
        return self.head(self.norm(self.embed(token)))


def test_a_write_from_outside_changes_the_model():
    model, other = Tied(), Tied()
    shared = receive.export_parameters(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            shm.attach(shared[name]).copy_(parameter)
    token = torch.arange(6)
    assert torch.equal(model(token), other(token))


def test_a_tied_weight_appears_once_and_buffers_not_at_all():
    model = Tied()
    names = ["embed.weight", "norm.weight", "norm.bias"]
    assert list(receive.export_parameters(model)) == list(receive.checksums(model)) == names


def test_scales_of_a_cache_are_not_weights():
    model = Tied()
    model.attn = nn.Module()
    model.attn.k_scale = nn.Parameter(torch.tensor(1.0), requires_grad=False)
    model.attn.v_scale = nn.Parameter(torch.tensor(1.0), requires_grad=False)
    names = ["embed.weight", "norm.weight", "norm.bias"]
    assert list(receive.export_parameters(model)) == list(receive.checksums(model)) == names


def test_exporting_again_gives_the_same_memory():
    model = Tied()
    assert receive.export_parameters(model) == receive.export_parameters(model)


def test_checksums_are_of_what_the_parameters_hold_now():
    model = Tied()
    before = receive.checksums(model)
    with torch.no_grad():
        model.norm.bias[2] += 1
    after = receive.checksums(model)
    assert after["norm.bias"] == checksum(model.norm.bias) != before["norm.bias"]
    assert {name for name in before if before[name] != after[name]} == {"norm.bias"}


def test_a_layer_repacked_for_amx_is_refused():
    model = Tied()
    model.head.use_intel_amx_backend = True
    with pytest.raises(EngineError, match="head is repacked"):
        receive.export_parameters(model)


class Updater:
    """Of an engine that says what it was asked for."""

    def __init__(self, answer=(True, "")):
        self.calls, self._answer = [], answer

    def begin_weight_update(self):
        self.calls.append("begin")

    def load_weights_from_distributed(self, named):
        self.calls.append({name: tensor.clone() for name, tensor in named})
        return self._answer

    def end_weight_update(self, *, run_post_load):
        self.calls.append("end" if run_post_load else "end without what is derived")


def test_a_bucket_goes_to_the_loader_inside_one_update():
    bucket = Bucket(torch.float32, {"a": (2, 3), "b": (3,)})
    buffer = torch.arange(bucket.nbytes // 4, dtype=torch.float32).view(torch.uint8)
    updater = Updater()
    receive.load_bucket(updater, bucket, shm.export(buffer), first=True, last=False)
    receive.load_bucket(updater, bucket, shm.export(buffer), first=False, last=True)
    begin, first, second, end = updater.calls
    assert (begin, end) == ("begin", "end")
    for loaded in (first, second):
        assert torch.equal(loaded["a"], torch.arange(6.0).view(2, 3))
        assert torch.equal(loaded["b"], torch.arange(6.0, 9.0))


def test_a_bucket_that_the_engine_did_not_take_is_an_error():
    bucket, buffer = Bucket(torch.float32, {"a": (2,)}), torch.zeros(8, dtype=torch.uint8)
    updater = Updater((False, "no such parameter"))
    with pytest.raises(EngineError, match="did not load a .*no such parameter"):
        receive.load_bucket(updater, bucket, shm.export(buffer), first=False, last=True)
    assert "end" not in updater.calls


def test_tensors_that_follow_from_weights_are_computed_again():
    class Latent(Tied):
        def post_load_weights(self):
            self.absorbed = self.embed.weight.detach().T.clone()

    model = Latent()
    assert receive.derives(model) and not receive.derives(Tied())
    (shared, *_) = receive.export_parameters(model).values()
    shm.attach(shared).fill_(2.0)
    receive.derive(model)
    assert torch.equal(model.absorbed, torch.full((4, 6), 2.0))
