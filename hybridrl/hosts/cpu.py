"""Makes the real Megatron-core run on CPU tensors over gloo. On a machine with CUDA this module does nothing.

Megatron has no notion of a device; it names CUDA at a few hundred places, in two ways:

    functions of torch.cuda, as current_device()      install() replaces them in this process
    device literals in torch calls, as device="cuda"  scope() redirects them in this thread

Both can be recorded: a test has the list of Megatron functions that rely on them, so a release of Megatron
that names CUDA at a new place is noticed.
"""

import contextlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hybridrl.hosts.fused_adam import FusedAdam

CPU = torch.device("cpu")

_NOT_OURS = (
    r"`torch.distributed.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",
    r"`load_state_dict` is deprecated",
    r"Please use DTensor instead",
    r"The .grad attribute of a Tensor that is not a leaf",
    r"full scope is deprecated",
)
"""Warnings about Megatron's code, which users cannot act on."""

_NOT_OURS_LOGGED = {
    "megatron.core.models.gpt.gpt_model": "GPTModel IS DEPRECATED",
    "megatron.core.distributed.distributed_data_parallel": "full_param_layout not provided",
}
"""The same that Megatron logs: by the name of its logger, how the message is recognised."""

_recording: set[str] | None = None
_installed = False


def install() -> None:
    """Prepare this process to import and run Megatron: a second call changes nothing.

    Raises:
        RuntimeError: Megatron was imported already, and its functions are bound to a compiler that a machine
            without CUDA may lack.
    """
    global _installed
    for message in _NOT_OURS:
        warnings.filterwarnings("ignore", message)
    for name, message in _NOT_OURS_LOGGED.items():
        _mute(name, message)
    if _installed or torch.cuda.is_available():
        return
    if "megatron.core" in sys.modules:
        raise RuntimeError("megatron.core was imported before hybridrl.trainer.megatron: import that first")
    _installed = True
    _replace_cuda_functions()
    _import_uncompiled()
    _repair_megatron()


def scope() -> AbstractContextManager[object]:
    """Enter this around every call into Megatron, in the thread that makes the call."""
    return contextlib.nullcontext() if torch.cuda.is_available() else _CudaLiteralsToCpu()


@contextlib.contextmanager
def record() -> Iterator[set[str]]:
    """A context that collects the Megatron functions which are redirected in it, as "what  file:function"."""
    global _recording
    _recording = set()
    try:
        yield _recording
    finally:
        _recording = None


def _mute(name: str, message: str) -> None:
    """Keep a logger from logging messages that have a text in them; a second call adds nothing."""
    logger = logging.getLogger(name)
    if not logger.filters:
        logger.addFilter(lambda record: message not in record.getMessage())


class _CudaLiteralsToCpu(TorchFunctionMode):
    """Lets torch calls that name a CUDA device run on the CPU."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if kwargs:
            kwargs = _without_cuda(kwargs)
        if func is Tensor.cuda:
            _note("Tensor.cuda()")
            return args[0]
        if func is Tensor.type and len(args) == 1 and not kwargs:
            _note("Tensor.type()")  # Megatron compares the result with names of CUDA types
            return func(*args).replace("torch.", "torch.cuda.", 1)
        return func(*args, **(kwargs or {}))


def _without_cuda(kwargs: dict[str, Any]) -> dict[str, Any]:
    if _is_cuda(kwargs.get("device")):
        _note("device=cuda")
        kwargs = {**kwargs, "device": CPU}
    if kwargs.get("pin_memory"):  # only CUDA can pin memory
        _note("pin_memory=True")
        kwargs = {**kwargs, "pin_memory": False}
    return kwargs


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


def _replace_cuda_functions() -> None:
    replacements: dict[str, Callable] = {
        "current_device": lambda: CPU,
        "current_stream": torch.cpu.current_stream,
        "synchronize": lambda *a, **k: None,
        "manual_seed": torch.manual_seed,
        "get_rng_state": lambda *a, **k: torch.get_rng_state(),
    }
    for name, function in replacements.items():
        setattr(torch.cuda, name, _noted(f"torch.cuda.{name}", function))
        if hasattr(torch.cuda.random, name):
            setattr(torch.cuda.random, name, getattr(torch.cuda, name))


def _import_uncompiled() -> None:
    """Import Megatron without compiling its small functions, so that they need no compiler on a CPU."""
    compile_ = torch.compile
    torch.compile = lambda function: function
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Megatron warns of each GPU library that is not installed
            import megatron.core
            import megatron.core.jit
            import megatron.core.models.gpt.gpt_layer_specs
    finally:
        torch.compile = compile_
    megatron.core.jit.disable_jit_fuser()


def _repair_megatron() -> None:
    import megatron.core.optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed
    import megatron.core.tensor_parallel.mappings as mappings
    import megatron.core.tensor_parallel.random as random
    from megatron.core.transformer import multi_latent_attention
    from megatron.core.transformer.moe import moe_utils
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

    # These two use the generators of CUDA devices without torch.cuda.
    random._get_cuda_rng_state = _noted("_get_cuda_rng_state", lambda *a, **k: torch.get_rng_state())
    random._set_cuda_rng_state = _noted(
        "_set_cuda_rng_state", lambda state, *a, **k: torch.set_rng_state(state)
    )
    # DistributedOptimizer can save the state of a fused Adam, but not that of torch's own.
    if importlib.util.find_spec("transformer_engine") is None and importlib.util.find_spec("apex") is None:
        megatron.core.optimizer.Adam = distributed.Adam = FusedAdam
        megatron.core.optimizer.USING_PYTORCH_OPTIMIZER = False
        distributed.HAVE_APEX_OR_TE = distributed.USING_APEX_OPTIMIZER = True
    if importlib.util.find_spec("transformer_engine") is None:  # Megatron reads names that only it defines
        moe_utils.te_general_gemm = None
        multi_latent_attention.HAVE_TE = False
    mappings._gather_along_first_dim = _gather_uneven(mappings._gather_along_first_dim)
    mappings._reduce_scatter_along_first_dim = _scatter_uneven(mappings._reduce_scatter_along_first_dim)
    # Megatron's own copies the sizes to the CPU on a separate CUDA stream.
    MoEAlltoAllTokenDispatcher.cuda_dtoh_stream = CPU
    MoEAlltoAllTokenDispatcher._maybe_dtoh_and_synchronize = _noted(
        "_maybe_dtoh_and_synchronize", _splits_to_lists
    )


def _splits_to_lists(dispatcher: Any, point: str, tokens_per_expert: Tensor | None = None) -> Tensor | None:
    """Convert split sizes to lists of integers, which gloo's all-to-all of uneven parts needs."""
    if point == dispatcher.cuda_dtoh_point:
        for name in ("input_splits", "output_splits"):
            splits = getattr(dispatcher, name)
            setattr(dispatcher, name, splits if splits is None else splits.tolist())
    return tokens_per_expert


def _gather_uneven(gather: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap Megatron's gather for parts of uneven size, which gloo does not gather: they are padded.

    The wrapper has Megatron's arguments.
    """

    def gathered(part: Tensor, group: Any, sizes: list[int] | None = None, *rest: Any, **more: Any) -> Tensor:
        sizes = more.pop("output_split_sizes", sizes)
        if sizes is None or len(set(sizes)) == 1:
            return gather(part, group, sizes, *rest, **more)
        padded = part.new_zeros(max(sizes), *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded, group=group)
        return torch.cat([found[:size] for found, size in zip(parts, sizes, strict=True)])

    return gathered


def _scatter_uneven(scatter: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap Megatron's reduce-scatter for parts of uneven size: each rank sums all parts and keeps its own."""

    def scattered(
        whole: Tensor, group: Any, sizes: list[int] | None = None, *rest: Any, **more: Any
    ) -> Tensor:
        sizes = more.pop("input_split_sizes", sizes)
        if sizes is None or len(set(sizes)) == 1:
            return scatter(whole, group, sizes, *rest, **more)
        total = whole.clone()
        torch.distributed.all_reduce(total, group=group)
        return total.split(sizes)[group.rank()].clone()

    return scattered


def _noted(what: str, function: Callable) -> Callable:
    def noted(*args: Any, **kwargs: Any) -> Any:
        _note(what)
        return function(*args, **kwargs)

    return noted


def _note(what: str) -> None:
    if _recording is None:
        return
    frame = sys._getframe(2)
    while frame is not None:
        _, inside, path = frame.f_code.co_filename.rpartition("/megatron/core/")
        if inside:
            _recording.add(f"{what}  {path}:{frame.f_code.co_qualname}")
            return
        frame = frame.f_back
