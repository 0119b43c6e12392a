"""The parameters of a model, given to others in place."""

import pytest
import torch
from torch import nn

from hybridrl.errors import EngineError
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
