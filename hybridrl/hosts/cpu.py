"""The machine without CUDA: makes the real Megatron-core run on CPU tensors over gloo. Inert where CUDA is present.

Megatron has no notion of a device; it names CUDA at a few hundred places, in two ways:

    functions of torch.cuda     (current_device, streams, RNG state, ...)  install() replaces them once per process
    device literals in torch calls  ("cuda", Tensor.cuda(), pin_memory, ...)   scope() redirects them, in the calling thread

Both can be recorded: tests hold the list of Megatron functions that rely on them, so that a release of Megatron which
names CUDA at a new place is noticed.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hybridrl.hosts.fused_adam import FusedAdam

CPU = torch.device("cpu")

_recording: set[str] | None = None
_installed = False


def install() -> None:
    """Prepare this process to import and run Megatron. Call it before anything imports `megatron`; repeating is free.

    Raises:
        RuntimeError: Megatron was imported already, with its functions bound to a compiler that a CPU host may not have.
    """
    global _installed
    if _installed or torch.cuda.is_available():
        return
    if "megatron.core" in sys.modules:
        raise RuntimeError(
            "hosts.cpu.install() came after the import of megatron.core: import hybridrl.trainer.megatron first"
        )
    _installed = True
    _replace_cuda_functions()
    _import_uncompiled()
    _repair_megatron()


def scope() -> AbstractContextManager[object]:
    """Enter this around every call into Megatron, in the thread that makes the call."""
    return contextlib.nullcontext() if torch.cuda.is_available() else _CudaLiteralsToCpu()


@contextlib.contextmanager
def record() -> Iterator[set[str]]:
    """Collect every Megatron function that was redirected while inside, as "what  megatron/core/file.py:function"."""
    global _recording
    _recording = set()
    try:
        yield _recording
    finally:
        _recording = None


class _CudaLiteralsToCpu(TorchFunctionMode):
    """Lets torch calls that name a CUDA device run on the CPU."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs:
            if _is_cuda(kwargs.get("device")):
                _note("device=cuda")
                kwargs = {**kwargs, "device": CPU}
            if kwargs.get("pin_memory"):
                _note("pin_memory=True")
                kwargs = {**kwargs, "pin_memory": False}
        if func is Tensor.cuda:
            _note("Tensor.cuda()")
            return args[0]
        if func is Tensor.type and len(args) == 1 and not kwargs:
            _note("Tensor.type()")  # compared with the names of CUDA types
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if func is Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            _note("Tensor.to(cuda)")
            args = (args[0], CPU, *args[2:])
        return func(*args, **kwargs)


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


class _Stream:
    """An in-order device has one stream, which never has to wait."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_stream(self, stream: "_Stream") -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...


def _replace_cuda_functions() -> None:
    replacements: dict[str, Callable] = {
        "current_device": lambda: CPU,
        "synchronize": lambda *a, **k: None,
        "manual_seed": torch.manual_seed,
        "get_rng_state": lambda *a, **k: torch.get_rng_state(),
        "set_rng_state": lambda state, *a, **k: torch.set_rng_state(state),
        "current_stream": lambda *a, **k: _Stream(),
        "default_stream": lambda *a, **k: _Stream(),
        "stream": lambda *a, **k: contextlib.nullcontext(),
    }
    for name, function in replacements.items():
        setattr(torch.cuda, name, _noted(f"torch.cuda.{name}", function))
        if hasattr(torch.cuda.random, name):
            setattr(torch.cuda.random, name, getattr(torch.cuda, name))
    torch.cuda.Stream = _Stream
    torch.cuda.nvtx.range_push = lambda *a, **k: None
    torch.cuda.nvtx.range_pop = lambda *a, **k: None


def _import_uncompiled() -> None:
    """Megatron compiles small functions as it is imported; on CPU they run as written, without a C++ compiler."""
    with patch.object(torch, "compile", lambda function=None, **options: function):
        import megatron.core
    import megatron.core.jit

    megatron.core.jit.disable_jit_fuser()


def _repair_megatron() -> None:
    import megatron.core.optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed
    import megatron.core.tensor_parallel.random as random

    # These two go past torch.cuda, to the generators of CUDA devices.
    random._set_cuda_rng_state = _noted(
        "_set_cuda_rng_state", lambda state, *a, **k: torch.set_rng_state(state)
    )
    random._get_cuda_rng_state = _noted("_get_cuda_rng_state", lambda *a, **k: torch.get_rng_state())
    # With torch's own Adam, DistributedOptimizer cannot be saved before its first step; with a fused one it can.
    if importlib.util.find_spec("transformer_engine") is None and importlib.util.find_spec("apex") is None:
        megatron.core.optimizer.Adam, megatron.core.optimizer.USING_PYTORCH_OPTIMIZER = FusedAdam, False
        distributed.Adam, distributed.HAVE_APEX_OR_TE, distributed.USING_APEX_OPTIMIZER = (
            FusedAdam,
            True,
            True,
        )


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
