"""Which parameters of a model no optimizer step changes: they are not trained, and have no adapter."""

from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

from hybridrl.layout.adapters import A, B
from hybridrl.layout.base import Layout, instance
from hybridrl.trainer.base import Model


def fixed(model: Model) -> frozenset[str]:
    """Canonical names, such as "layers.3.qkv", the same on every rank. *Collective*.

    A parameter that some rank trains a part of is not fixed.
    """
    changed: list[Any] = [set(_changed(model))] * dist.get_world_size()
    dist.all_gather_object(changed, changed[0])
    return frozenset(_names(model.layout)) - frozenset[str]().union(*changed)


def _changed(model: Model) -> Iterator[str]:
    """Canonical names of what this rank trains; an adapter changes the weight that it belongs to."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for held in model.trained.holdings:
        if model.rank in held.ranks:
            param = held.param.removesuffix(f".{A}").removesuffix(f".{B}")
            for layer in held.layers:
                if any(name in trained for name, _ in held.shards(layer)):
                    yield instance(param, layer)


def _names(layout: Layout) -> Iterator[str]:
    return (instance(held.param, layer) for held in layout.holdings for layer in held.layers)
