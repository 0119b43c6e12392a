"""Block-FP8 quantisation of a weight: the specification that every executor follows bit for bit.

The arithmetic is DeepGEMM's `per_block_cast_to_fp8`, in the two forms that SGLang ships: float32 scales
(sglang/benchmark/deepseek_utils.py) and scales that are powers of two (layers/quantization/fp8_utils.py):

    amax  = largest absolute value of the block in float32, at least 1e-4
    scale = amax / 448                                value = e4m3(w * ((1 / amax) * 448))
    scale = amax / 448, up to a power of two          value = e4m3(w * (1 / scale))

Every step rounds to float32, and e4m3 rounds to nearest even. Division is IEEE division as on a CPU. torch on
CUDA multiplies by the reciprocal of a constant instead, so its scales may differ in the last bit.
"""

import torch
from torch import Tensor

from hybridrl.layout.blocks import BLOCK

LARGEST = 448.0
"""Largest finite value of float8_e4m3fn."""

SMALLEST_AMAX = 1e-4


def quantise(weight_RC: Tensor, *, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """Quantise a matrix to FP8 values and one scale per block of 128 x 128; the last blocks may be ragged.

    Args:
        weight_RC: float32, bfloat16 or float16.

    Returns:
        Values, float8_e4m3fn [R, C], and scales, float32 [ceil(R/128), ceil(C/128)]; value * scale = weight.
    """
    num_rows, num_cols = weight_RC.shape
    blocks = (-(-num_rows // BLOCK), -(-num_cols // BLOCK))
    padded = weight_RC.new_zeros(blocks[0] * BLOCK, blocks[1] * BLOCK)
    padded[:num_rows, :num_cols] = weight_RC
    cells = padded.view(blocks[0], BLOCK, blocks[1], BLOCK)
    amax = cells.abs().float().amax(dim=(1, 3), keepdim=True).clamp(SMALLEST_AMAX)
    scale = amax / LARGEST
    if power_of_two:
        scale = _up_to_power_of_two(scale)
        factor = 1.0 / scale
    else:
        factor = amax.reciprocal() * LARGEST
    values = (cells * factor).to(torch.float8_e4m3fn).view_as(padded)[:num_rows, :num_cols]
    return values.contiguous(), scale.view(blocks)


def _up_to_power_of_two(scale: Tensor) -> Tensor:
    bits = scale.view(torch.int32)
    exponent = (bits >> 23 & 0xFF) + (bits & 0x7FFFFF != 0).int()
    return (exponent.clamp(1, 254) << 23).view(torch.float32)
