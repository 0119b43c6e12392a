"""Runs in a scheduler process: shares the model's parameters with writers, and computes their checksums.

Parameters have SGLang's own names. A tied weight appears once; buffers (rotary tables) are not shared.
If weights cannot be written in place, buckets of a checkpoint go through SGLang's own loader.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from hybridrl.errors import EngineError
from hybridrl.hosts import matmul
from hybridrl.reshard.buckets import Bucket
from hybridrl.reshard.checksum import checksum
from hybridrl.reshard.transports import base as transports
from hybridrl.reshard.transports.base import SharedTensor, attach

CACHE_SCALES = (".k_scale", ".v_scale")
"""Ends of the names of scales for an FP8 cache. A quantised model has them as parameters, a trainer has none;
SGLang sets them to 1 then.
"""


def weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that a swap writes, by name, with the scales of FP8 weights."""
    return (named for named in model.named_parameters() if not named[0].endswith(CACHE_SCALES))


def export_parameters(model: nn.Module) -> dict[str, SharedTensor]:
    """Share every parameter with other processes of the machine, in place.

    Raises:
        EngineError: SGLang repacked a layer for Intel AMX, so that it no longer has the model's own layout.
        ResourceError: shared memory is full, or memory of the GPU cannot be shared.
    """
    packed = repacked(model)
    if packed:
        raise EngineError(
            f"{packed} is repacked for AMX and cannot be written in place",
            fix="uninstall the CPU build of sgl-kernel",
        )
    shared = {
        name: transports.of(parameter.device).export(parameter.data) for name, parameter in weights(model)
    }
    matmul.pack(model)  # its parameters have moved
    return shared


def checksums(model: nn.Module) -> dict[str, int]:
    return {name: checksum(parameter.data) for name, parameter in weights(model)}


def derives(model: nn.Module) -> bool:
    """Whether tensors are derived from the model's weights: packed copies for products on a CPU, and w_kc and
    w_vc of DeepSeek from kv_b_proj."""
    return matmul.packs(model) or hasattr(model, "post_load_weights")


def derive(model: Any) -> None:
    """Recompute the derived tensors from the present parameters."""
    matmul.pack(model)
    if hasattr(model, "post_load_weights"):
        model.post_load_weights()


def repacked(model: nn.Module) -> str:
    """Name of the first layer that SGLang has repacked; "" if there is none."""
    packed = (name for name, layer in model.named_modules() if getattr(layer, "use_intel_amx_backend", False))
    return next(packed, "")


def load_bucket(updater: Any, bucket: Bucket, buffer: SharedTensor, *, first: bool, last: bool) -> None:
    """Load one part of a checkpoint through SGLang's own loader.

    Between the first and the last bucket, old and new weights are mixed.

    Args:
        updater: SGLang's WeightUpdater.
        buffer: memory that holds the bucket.

    Raises:
        EngineError: SGLang did not load it.
    """
    if first:
        updater.begin_weight_update()
    # SGLang's update_weights_from_tensor would patch the pickling of tensors, which breaks on CPU.
    success, message = updater.load_weights_from_distributed(list(bucket.views(attach(buffer)).items()))
    if not success:
        raise EngineError(f"SGLang did not load {next(iter(bucket.shapes))} and what follows it: {message}")
    if last:
        updater.end_weight_update(run_post_load=True)
