"""Megatron's own layers on a GPU, with torch's attention, where Transformer Engine is not installed.

The layout then is that of a CPU, so checkpoints and weight updates have its names. On a CPU this changes
nothing.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HOOKS = Path(__file__).resolve().parent / "hooks"


def replace_layers() -> None:
    """In this process."""
    import torch

    if not torch.cuda.is_available():
        return
    replace_layout()
    import hybridrl.trainer.megatron  # noqa: F401  # isort: skip  # before Megatron
    import megatron.core.jit
    import megatron.core.optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed
    from megatron.core.transformer import multi_latent_attention
    from megatron.core.transformer.moe import moe_utils

    from hybridrl.hosts import cuda
    from hybridrl.hosts.fused_adam import FusedAdam
    from hybridrl.trainer.megatron import architecture, model, parts

    megatron.core.jit.disable_jit_fuser()
    megatron.core.optimizer.Adam = distributed.Adam = FusedAdam
    megatron.core.optimizer.USING_PYTORCH_OPTIMIZER = False
    distributed.HAVE_APEX_OR_TE = distributed.USING_APEX_OPTIMIZER = True
    moe_utils.te_general_gemm, multi_latent_attention.HAVE_TE = None, False
    take = cuda.take
    cuda.take = lambda device, **options: take(device, transformer_engine=False)
    architecture._fusions = lambda setup: {
        **architecture._NO_FUSIONS,
        "deterministic_mode": setup.deterministic,
    }
    model.parts_of = lambda device: parts.MEGATRONS


def replace_layout() -> None:
    """Give every device the names and shapes of Megatron's own layers."""
    from hybridrl.layout.megatron import MegatronLayout

    of: Any = MegatronLayout.of.__func__
    MegatronLayout.of = classmethod(
        lambda cls, spec, *, on_gpu, **sizes: of(cls, spec, on_gpu=False, **sizes)
    )


@contextlib.contextmanager
def in_every_process() -> Iterator[None]:
    """A context in which new Python processes do the same, and start engines that need no compiler."""
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HOOKS), str(HOOKS.parent), path]))
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = path
