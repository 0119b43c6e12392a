"""Memory that comes and goes where data-parallel ranks share the weights: what a rank has whole meanwhile."""

from dataclasses import replace

from hybridrl.config.training import TrainParallel
from hybridrl.estimate.setting import Setting
from hybridrl.estimate.weights import on_stage
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.trainers import TrainerLayout

GRADIENT_BYTES = 4
"""Bytes per gradient: gradients are accumulated in fp32 for every dtype of weights."""


def gathered(setting: Setting, microbatches: int = 0) -> float:
    """Bytes of weights and gradients that a rank has whole, beside its shards; 0 where ranks share none.

    Weights are those outside the layers, of the layer that computes, and of the next one, or with
    actor.gather = once those of the model. With one microbatch, gradients of the first three come with them;
    with several, gradients of the whole model wait for the last.

    Args:
        microbatches: of an optimizer step; 0: a forward pass, without gradients.
    """
    if not setting.shards_weights:
        return 0.0
    alone = replace(setting, train=TrainParallel(tp=setting.train.tp, dp=1))
    trained = alone.adapters() or alone.layout()
    gradients = on_stage(trained, 0).all if microbatches > 1 else _at_once(trained) * microbatches
    weights = on_stage(alone.layout(), 0).all if setting.gathers_once else _at_once(alone.layout())
    return weights * setting.weight_bytes + gradients * GRADIENT_BYTES


def _at_once(layout: TrainerLayout | AdapterLayout) -> float:
    """Parameters outside the layers and of two layers."""
    every, layers = on_stage(layout, 0).all, on_stage(layout, 0, layers_only=True).all
    return every - layers * max(0.0, 1 - 2 / layout.spec.num_layers)
