"""Runs in a vLLM worker: shares the model's parameters with writers, computes checksums, probes the loader.

Parameters have vLLM's own names. A tied weight appears once; buffers (rotary tables) are not shared. If
weights cannot be written in place, buckets of a checkpoint go through vLLM's own loader.
"""

# pyright: reportMissingImports=false
# vLLM is in another environment.

import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers import utils as layer_utils
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker

from hybridrl.errors import EngineError, HybridRLError, LayoutError
from hybridrl.hosts import cuda, matmul
from hybridrl.layout.base import Layout
from hybridrl.reshard.buckets import Bucket
from hybridrl.reshard.checksum import checksum
from hybridrl.reshard.transports import base as transports
from hybridrl.reshard.transports.base import SharedTensor, attach
from hybridrl.rollout.probe import LoaderProbe
from hybridrl.rollout.saved import Saved
from hybridrl.rollout.vllm.sampler import SeededSampler


class RolloutWorker:
    """What a worker has in addition to vLLM's own. Names begin with rollout_, because vLLM's may change.

    Remote calls return errors in a list, because vLLM passes only the text of an exception on, whether it is
    raised or returned.
    """

    model_runner: Any
    vllm_config: Any
    rank: int

    def load_model(self, *args: Any, **options: Any) -> None:
        layer_utils.dispatch_cpu_unquantized_gemm = _plain_gemm  # callers import it when they call it
        super().load_model(*args, **options)  # pyright: ignore[reportAttributeAccessIssue]
        self.model_runner.sampler = SeededSampler(self.model_runner)

    def rollout_call(self, method: str, *args: Any) -> Any:
        try:
            return getattr(self, f"rollout_{method}")(*args)
        except HybridRLError as error:
            return [error]
        except Exception as error:  # process boundary: the caller gets the error
            return [EngineError(f"{type(error).__name__}: {error}", where=traceback.format_exc())]

    def rollout_export_parameters(self) -> dict[str, SharedTensor]:
        """Share every parameter with other processes of the machine, in place.

        Raises:
            EngineError: vLLM has repacked a parameter, so that it no longer has the model's own layout.
            ResourceError: shared memory is full, or memory of the GPU cannot be shared.
        """
        if packed := repacked(self._model):
            raise EngineError(f"vLLM has repacked {packed}: it cannot be written in place")
        shared = {
            name: transports.of(parameter.device).export(parameter.data)
            for name, parameter in self._model.named_parameters()
        }
        matmul.pack(self._model)  # its parameters have moved
        return shared

    def rollout_checksums(self) -> dict[str, int]:
        return {name: checksum(parameter.data) for name, parameter in self._model.named_parameters()}

    def rollout_probe_loader(self, layout: Layout) -> None:
        with set_current_vllm_config(self.vllm_config):
            probe_loader(self._model, layout, self.rank)

    def rollout_load_bucket(self, bucket: Bucket, buffer: SharedTensor, first: bool, last: bool) -> None:
        """Load one part of a checkpoint through vLLM's own loader.

        Between the first and the last bucket, old and new weights are mixed.
        """
        with set_current_vllm_config(self.vllm_config), torch.no_grad():
            if first:
                initialize_layerwise_reload(self._model)
            # Copies, because vLLM keeps tensors until it has all of a layer, and the buffer is used again.
            views = bucket.views(attach(buffer)).items()
            self._model.load_weights([(name, tensor.clone()) for name, tensor in views])
            if last:
                finalize_layerwise_reload(self._model, self.model_runner.model_config)

    def rollout_release_cached_memory(self) -> None:
        cuda.release_cached_memory()

    def rollout_derive(self) -> None:
        """Recompute tensors that the model derives from its weights."""
        matmul.pack(self._model)
        for module in self._model.modules():
            if hasattr(module, "kv_b_proj") and hasattr(module, "process_weights_after_loading"):
                module.process_weights_after_loading(self.model_runner.model_config.dtype)

    @property
    def _model(self) -> Any:
        return self.model_runner.get_model()


class CPURolloutWorker(RolloutWorker, CPUWorker):
    def load_model(self, *args: Any, **options: Any) -> None:
        matmul.install()
        super().load_model(*args, **options)
        matmul.pack(self._model)


class GPURolloutWorker(RolloutWorker, Worker):
    def _maybe_get_memory_pool_context(self, tag: str) -> AbstractContextManager[Any]:
        """Weights stay out of the pool of the sleep mode, whose memory cannot be shared through CUDA IPC."""
        return nullcontext() if tag == "weights" else super()._maybe_get_memory_pool_context(tag)


def _plain_gemm(layer: Any, remove_weight: bool) -> None:
    """Multiply as torch does, which hosts/matmul.py sends to packed copies of large weights. The function of
    vLLM itself leaves an empty parameter beside such a copy."""
    layer.cpu_linear = torch.nn.functional.linear


def repacked(model: nn.Module) -> str:
    """Name of the first parameter that vLLM has packed for kernels of a CPU; "" if there is none."""
    found = (name for name, parameter in model.named_parameters() if not parameter.numel())
    return next(found, "") or next(_packed_experts(model), "")


def _packed_experts(model: nn.Module) -> Iterator[str]:
    """Weights of experts on a CPU, which vLLM always packs."""
    for name, parameter in model.named_parameters():
        if parameter.device.type == "cpu" and name.endswith(("w13_weight", "w2_weight")):
            yield name


def probe_loader(model: nn.Module, layout: Layout, rank: int) -> None:
    """Feed tags to the model's own load_weights. No request may run. Weights are restored in any case.

    Raises:
        LayoutError: the parameters are not where `layout` says.
    """
    if packed := repacked(model):
        raise LayoutError(f"vLLM has repacked {packed}: it does not lie as any layout says")
    probe = LoaderProbe(layout, rank)
    parameters = dict(model.named_parameters())
    targets = [name for name in probe.targets if name in parameters]
    saved = Saved(model, targets)
    try:
        with torch.no_grad():
            probe.run(_loader(model, targets), lambda: {n: p.data for n, p in model.named_parameters()})
    finally:
        saved.restore()
        # Requests run on another stream, so wait until the weights are restored.
        device = next(iter(parameters.values())).device
        torch.get_device_module(device).synchronize()


def _loader(model: Any, targets: list[str]) -> Callable[[Iterator[tuple[str, torch.Tensor]]], None]:
    """A function that loads tensors and then processes the targets' modules, as vLLM does at its start."""
    owners = [model.get_submodule(path) for path in sorted({name.rpartition(".")[0] for name in targets})]

    def load(tags: Iterator[tuple[str, torch.Tensor]]) -> None:
        model.load_weights(tags)
        for module in owners:
            method: Any = getattr(module, "quant_method", None)
            if isinstance(method, QuantizeMethodBase):
                method.process_weights_after_loading(module)

    return load
