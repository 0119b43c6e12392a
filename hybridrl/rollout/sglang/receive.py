"""Inside a scheduler process: give the model's parameters to others to write, and tell what they hold.

Parameters go by SGLang's own names. A tied weight appears once; buffers (rotary tables) are no weights.
Where others may not write, buckets of a checkpoint go through SGLang's own loader.
"""

from typing import Any

from torch import nn

from hybridrl.errors import EngineError
from hybridrl.reshard.buckets import Bucket
from hybridrl.reshard.checksum import checksum
from hybridrl.reshard.transports import base as transports
from hybridrl.reshard.transports.base import SharedTensor, attach


def export_parameters(model: nn.Module) -> dict[str, SharedTensor]:
    """Let other processes of the machine reach every parameter, in place.

    Raises:
        EngineError: SGLang repacked a layer for Intel AMX, so that it no longer lies as the model has it.
        ResourceError: shared memory is full, or memory of the GPU cannot be shared.
    """
    packed = repacked(model)
    if packed:
        raise EngineError(
            f"{packed} is repacked for AMX and cannot be written in place",
            fix="uninstall the CPU build of sgl-kernel",
        )
    return {
        name: transports.of(parameter.device).export(parameter.data)
        for name, parameter in model.named_parameters()
    }


def checksums(model: nn.Module) -> dict[str, int]:
    return {name: checksum(parameter.data) for name, parameter in model.named_parameters()}


def derives(model: nn.Module) -> bool:
    """The model computes further tensors from its weights (DeepSeek: w_kc and w_vc from kv_b_proj)."""
    return hasattr(model, "post_load_weights")


def derive(model: Any) -> None:
    """Compute those tensors again, from what the parameters hold now."""
    model.post_load_weights()


def repacked(model: nn.Module) -> str:
    """The first layer that no longer lies as the model has it; "": all do."""
    packed = (name for name, layer in model.named_modules() if getattr(layer, "use_intel_amx_backend", False))
    return next(packed, "")


def load_bucket(updater: Any, bucket: Bucket, buffer: SharedTensor, *, first: bool, last: bool) -> None:
    """Take a part of a checkpoint through SGLang's own loader. From the first to the last, weights are mixed.

    Args:
        updater: SGLang's WeightUpdater.
        buffer: holds the bucket.

    Raises:
        EngineError: SGLang did not take it.
    """
    if first:
        updater.begin_weight_update()
    # The call for tensors of another process would patch how this one pickles tensors, which breaks on CPU.
    success, message = updater.load_weights_from_distributed(list(bucket.views(attach(buffer)).items()))
    if not success:
        raise EngineError(f"SGLang did not load {next(iter(bucket.shapes))} and what follows it: {message}")
    if last:
        updater.end_weight_update(run_post_load=True)
