"""The layout of a trainer by the sizes in a config, made once for equal sizes."""

from functools import cache
from typing import Any

from hybridrl.config.training import TrainParallel
from hybridrl.layout.trainers import TrainerLayout, layout_of
from hybridrl.models.spec import ModelSpec


def trainer_layout(
    backend: str, model: ModelSpec, parallel: TrainParallel, *, fused: bool = False
) -> TrainerLayout:
    """
    Args:
        backend: value of actor.backend.
        parallel: parallel layout with dp set.

    Raises:
        LayoutError: the model does not divide over the ranks, or a key has no meaning for the backend.
    """
    layout_of(backend).refuse_keys(model, parallel)
    return _layout(backend, model, fused, tuple(parallel.sizes.items()))


@cache
def _layout(backend: str, model: ModelSpec, fused: bool, sizes: tuple[tuple[str, Any], ...]) -> TrainerLayout:
    return layout_of(backend).of(model, on_gpu=fused, **dict(sizes))
