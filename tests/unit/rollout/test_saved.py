"""Tensors of a model are put back bit for bit, in the same memory, whatever happened to them meanwhile."""

import torch
from torch import nn

from hybridrl.rollout.saved import Saved


class Latent(nn.Module):
    """Attention that keeps something derived of a weight below it, as latent attention does."""

    def __init__(self):
        super().__init__()
        self.kv_b = nn.Linear(4, 6)
        self.derived = self.kv_b.weight.detach().T.contiguous()
        self.register_buffer("scale", torch.rand(3))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Latent() for _ in range(2))
        self.head = nn.Linear(4, 6, bias=False)
        self.tied = nn.Linear(4, 6, bias=False)
        self.tied.weight = self.head.weight


def state(model):
    """Address and bits of every tensor, also of those that are no parameters."""
    found = {}
    for path, module in model.named_modules():
        for place in (module._parameters, module._buffers, module.__dict__):
            for key, value in place.items():
                if isinstance(value, torch.Tensor):
                    found[path, key] = (id(value), value.data_ptr(), value.detach().clone())
    return found


def assert_equal(before, after):
    assert before.keys() == after.keys()
    for key, (identity, address, values) in before.items():
        assert (identity, address) == after[key][:2], key
        assert torch.equal(values, after[key][2]), key


def damage(layer):
    """What loaders do: write in place, put another tensor in the place of one, leave something new."""
    with torch.no_grad():
        layer.kv_b.bias.fill_(7)
    layer.kv_b.weight.data = torch.zeros(6, 4)
    layer.kv_b.weight = nn.Parameter(torch.ones(6, 4))
    layer.derived = torch.zeros(4, 6)
    layer.scale = torch.zeros(3)
    layer.left_behind = torch.zeros(1)


def test_everything_around_a_parameter_is_put_back():
    model = Model()
    before = state(model)
    saved = Saved(model, ["layers.1.kv_b.weight", "head.weight"])
    damage(model.layers[1])
    with torch.no_grad():
        model.head.weight.zero_()
    saved.restore()
    assert_equal(before, state(model))
    assert model.tied.weight is model.head.weight


def test_other_layers_are_let_alone():
    model = Model()
    saved = Saved(model, ["layers.1.kv_b.weight"])
    damage(model.layers[0])
    before = state(model)
    saved.restore()
    assert_equal(before, state(model))


def test_a_value_that_is_not_a_number_comes_back_with_its_bits():
    model = Model()
    bits = torch.tensor([0x7FC01234, -0x80000000], dtype=torch.int32)
    with torch.no_grad():
        model.head.weight[0, :2] = bits.view(torch.float32)
    saved = Saved(model, ["head.weight"])
    with torch.no_grad():
        model.head.weight.fill_(1)
    saved.restore()
    assert torch.equal(model.head.weight.data[0, :2].view(torch.int32), bits)
