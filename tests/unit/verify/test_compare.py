"""Differences are relative and of the worst parameter; the axis that breaks the equality is named."""

import math

import pytest
import torch
from model_values import hf_tensors, tiny
from safetensors.torch import save_file

from hybridrl.verify.compare import Reference, blame
from hybridrl.verify.layouts import Row
from hybridrl.verify.measure import Measured

MODEL = tiny(num_layers=1)


def row(*axes):
    return Row(" ".join(axes), frozenset(axes))


def measured(folder, tensors, loss=2.0, grad_norm=4.0):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return Measured((loss,), (grad_norm,), (folder,))


@pytest.fixture
def gradients():
    return hf_tensors(MODEL)


@pytest.fixture
def reference(gradients, tmp_path):
    return Reference(measured(tmp_path / "reference", gradients), MODEL)


def test_equal_rows_have_no_difference(reference, gradients, tmp_path):
    found = reference.compare(measured(tmp_path / "same", gradients))
    assert (found.largest, found.parameter) == (0.0, "")


def test_every_number_is_relative_and_the_worst_parameter_is_named(reference, gradients, tmp_path):
    name = "model.layers.0.mlp.down_proj.weight"
    changed = {n: t + (1e-3 if n == name else 1e-5) for n, t in gradients.items()}
    found = reference.compare(measured(tmp_path / "other", changed, loss=2.02, grad_norm=3.96))
    assert found.loss == pytest.approx(0.01)
    assert found.grad_norm == pytest.approx(0.01)
    assert found.parameter == name
    assert found.gradient == pytest.approx(1e-3 / float(gradients[name].abs().max()), rel=1e-3)


def test_a_gradient_of_rounding_alone_is_measured_against_the_model(gradients, tmp_path):
    name = "model.norm.weight"
    small = gradients | {name: gradients[name] * 1e-9}
    reference = Reference(measured(tmp_path / "reference", small), MODEL)
    found = reference.compare(measured(tmp_path / "other", small | {name: small[name] * -1}))
    assert 0 < found.gradient < 1e-4


@pytest.mark.parametrize("loss, poison", [(math.nan, 0.0), (2.0, math.nan), (2.0, math.inf)])
def test_what_is_no_number_differs(reference, gradients, tmp_path, loss, poison):
    poisoned = gradients | {"model.norm.weight": torch.full((6,), poison or 1.0)}
    assert reference.compare(measured(tmp_path / "other", poisoned, loss=loss)).largest > 0.1


def test_an_axis_that_fails_alone_is_blamed_and_excuses_its_combinations():
    holds = {row("packing"): False, row("tp"): True, row("tp", "packing"): False, row("dp"): True}
    assert blame(holds) == ["packing"]


def test_an_axis_that_never_stands_alone_is_blamed_where_its_companion_is_sound():
    holds = {row("tp"): True, row("tp", "sp"): False, row("tp", "sp", "packing"): False}
    assert blame(holds) == ["sp"]


def test_sound_axes_that_fail_together_are_blamed_together():
    holds = {row("tp"): True, row("pp"): True, row("pp", "tp"): False}
    assert blame(holds) == ["pp with tp"]


def test_nothing_is_blamed_if_all_rows_hold():
    assert blame({row("tp"): True, row("tp", "packing"): True}) == []
