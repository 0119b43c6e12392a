"""Memory that comes and goes where data-parallel ranks share the weights: what a rank has whole meanwhile."""

from hybridrl.config.training import TrainParallel
from hybridrl.estimate.setting import Setting, trainer_layout
from hybridrl.estimate.weights import on_stage

GRADIENT_BYTES = 4
"""Bytes per gradient: gradients are accumulated in fp32 for every dtype of weights."""


def gathered(setting: Setting, microbatches: int = 0) -> float:
    """Bytes of weights and gradients that a rank has whole, beside its shards; 0 where ranks share none.

    Weights are those outside the layers, of the layer that computes, and of the next one. With one microbatch
    their gradients come with them; with several, gradients of the whole model wait for the last.

    Args:
        microbatches: of an optimizer step; 0: a forward pass, without gradients.
    """
    if not setting.shards_weights:
        return 0.0
    layout = trainer_layout(setting.backend, setting.model, TrainParallel())
    every, layers = on_stage(layout, 0).all, on_stage(layout, 0, layers_only=True).all
    whole = every - layers * max(0.0, 1 - 2 / setting.model.num_layers)
    gradients = every if microbatches > 1 else whole * microbatches
    return whole * setting.weight_bytes + gradients * GRADIENT_BYTES
