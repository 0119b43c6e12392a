"""Runs in a scheduler process: compares SGLang's loader with a declared layout, and restores the weights."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from sglang.srt.layers.quantization.base_config import QuantizeMethodBase
from torch import nn

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Layout
from hybridrl.rollout.probe import LoaderProbe
from hybridrl.rollout.saved import Saved
from hybridrl.rollout.sglang.receive import repacked, weights


def probe_loader(model: nn.Module, layout: Layout, rank: int) -> None:
    """Feed tags to the model's own load_weights. No request may run. Weights are restored in any case.

    This costs a copy of the first and last layer, the embedding and the output layer in main memory, and
    three loads of these, or about seven in half precision.

    Raises:
        LayoutError: the parameters are not where `layout` says.
    """
    packed = repacked(model)
    if packed:
        raise LayoutError(f"{packed} is repacked for AMX: it does not lie as any layout says")
    probe = LoaderProbe(layout, rank)
    parameters = dict(weights(model))
    targets = [name for name in probe.targets if name in parameters]
    owners = [model.get_submodule(path) for path in sorted({name.rpartition(".")[0] for name in targets})]

    def load(tags: Iterator[tuple[str, torch.Tensor]]) -> None:
        # This is how SGLang updates weights: it unpacks before a load and packs afterwards. Only modules that
        # get tags are treated so, because packing twice would break the others.
        methods: list[tuple[nn.Module, Any]] = [
            (module, getattr(module, "quant_method", None)) for module in owners
        ]
        for module, method in methods:
            if isinstance(method, QuantizeMethodBase):
                method.restore_weights_before_loading(module)
        cast(Any, model).load_weights(tags)
        for module, method in methods:
            if method is not None:
                method.process_weights_after_loading(module)

    saved = Saved(model, targets)
    try:
        with torch.no_grad():
            probe.run(load, lambda: {name: p.data for name, p in weights(model)})
    finally:
        saved.restore()
        # Requests run on another stream, so wait until the weights are restored.
        torch.get_device_module(next(iter(parameters.values())).device).synchronize()
