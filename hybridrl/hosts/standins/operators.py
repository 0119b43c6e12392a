"""Operators of SGLang's kernel package that its models look up when they are imported, on a machine without
CUDA. They are declared, and nobody calls them."""

import torch

_NAMES = (
    "fused_sigmoid_mul_cpu",
    "fused_qk_gemma_rmsnorm_cpu",
    "fused_qk_gemma_rmsnorm_with_gate_cpu",
    "fused_qkvzba_split_reshape_cat_contiguous_cpu",
)
"""Operators that the module of SGLang's Qwen-VL processor looks up. `convert_weight_packed` must not be among
them: by that SGLang recognises a build for Intel AMX, and wants further kernels."""


def declare() -> None:
    """Declare those that no package has registered. It must run before SGLang loads a model."""
    for name in _NAMES:
        if not hasattr(torch.ops.sgl_kernel, name):
            torch.library.define(f"sgl_kernel::{name}", "(Tensor x) -> Tensor")
