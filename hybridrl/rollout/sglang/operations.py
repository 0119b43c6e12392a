"""RMSNorm and rotary embeddings of SGLang's models on a CPU, in fewer operations than SGLang's own: with few
tokens an operation costs more than its arithmetic. Results are the same bit for bit.

Shape letters: T tokens, H heads, D head size, E half of it, X heads x head size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

_FP32 = {torch.float32}


def normalised(
    native: Callable[..., Any],
    norm: Any,
    x: Tensor,
    residual: Tensor | None = None,
    post_residual_addition: Tensor | None = None,
    quant_linear: Any = None,
) -> Any:
    """RMSNorm.forward_native of SGLang, which is `native`, in float32."""
    plain = norm.variance_size_override is None and norm.override_orig_dtype is None
    if not plain or post_residual_addition is not None or {x.dtype, norm.weight.dtype} != _FP32:
        return native(norm, x, residual, post_residual_addition, quant_linear)
    total = x if residual is None else x + residual
    result = rms_norm(total, (norm.hidden_size,), norm.weight, norm.variance_epsilon)
    return result if residual is None else (result, total)


def rotated(
    native: Callable[..., Any],
    rope: Any,
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    offsets: Tensor | None = None,
    fused_set_kv_buffer_arg: Any = None,
) -> tuple[Tensor, Tensor]:
    """RotaryEmbedding.forward_native of SGLang, which is `native`, for whole heads in float32.

    Args:
        positions: [T].
        query, key: [T, X], of any numbers of heads.
    """
    plain = rope.is_neox_style and rope.rotary_dim == rope.head_size
    flat = positions.dim() == 1 and query.dim() == key.dim() == 2
    given = offsets is not None or fused_set_kv_buffer_arg is not None
    if given or not plain or not flat or {query.dtype, key.dtype, rope.cos_sin_cache.dtype} != _FP32:
        return native(rope, positions, query, key, offsets, fused_set_kv_buffer_arg)
    cos_T1E, sin_T1E = rope.cos_sin_cache.index_select(0, positions)[:, None].chunk(2, -1)
    first_THE, second_THE = torch.cat((query, key), -1).unflatten(-1, (-1, rope.head_size)).chunk(2, -1)
    turned_first_THE = (first_THE * cos_T1E).sub_(second_THE * sin_T1E)
    turned_second_THE = (second_THE * cos_T1E).add_(first_THE * sin_T1E)
    turned_TX = torch.cat((turned_first_THE, turned_second_THE), -1).flatten(1)
    return turned_TX[:, : query.shape[1]], turned_TX[:, query.shape[1] :]
