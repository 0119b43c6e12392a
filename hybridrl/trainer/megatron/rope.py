"""Rotary position embedding of packed sequences: every token is rotated by its position in its own sequence.

Shape letters: T packed tokens, D size of the rotated part of a head.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hybridrl.layout.megatron import ROPE_SCALINGS
from hybridrl.models.spec import ModelSpec
from hybridrl.trainer.places import Packing


class PackedRotary(torch.nn.Module):
    """Replaces Megatron's RotaryEmbedding, which loops over the sequences in every layer."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.amplitude = amplitude(spec)
        """Factor of sine and cosine (YaRN). The code that applies the angles multiplies by it, or scales the
        product of query and key by its square."""

        self._frequencies = [inverse_frequencies(spec)]
        if spec.window_rope_theta is not None:
            self._frequencies.append(plain_frequencies(spec.window_rope_theta, spec.rotary_dim))
        self._axis = axes_of_pairs(spec) if spec.rope_sections else None

    def get_rotary_seq_len(self, *unused: Any) -> Packing:
        """The packing, which is the last argument. Megatron passes the result on to `forward`."""
        return unused[-1]

    def forward(self, packing: Packing, **unused: Any) -> Tensor:
        """Angles in radians, float32 [T, 1, 1, D].

        If windowed layers have their own frequencies, [2, T, 1, 1, D] with the windowed layers' angles last.
        """
        angles = [self._angles(packing, f) for f in self._frequencies]
        both = [torch.cat([angle, angle], dim=1)[:, None, None] for angle in angles]
        return torch.stack(both) if len(both) > 1 else both[0]

    def _angles(self, packing: Packing, frequencies: Tensor) -> Tensor:
        """Angles of all pairs of dims, float32 [T, D / 2]."""
        if self._axis is None or packing.place_3T is None:  # without pictures all three places are equal
            position_T = packing.position_T.float()
            return torch.outer(position_T, frequencies.to(position_T.device))
        place_DT = packing.place_3T.float()[self._axis.to(packing.place_3T.device)]
        return (place_DT * frequencies.to(place_DT.device)[:, None]).T


def axes_of_pairs(spec: ModelSpec) -> Tensor:
    """Along which axis (0 time, 1 row, 2 column) each pair of dims of a head turns, int64 [D / 2].

    Sources: Qwen2.5-VL, arXiv:2502.13923, contiguous; Qwen3-VL, arXiv:2511.21631, interleaved.
    """
    sections = spec.rope_sections
    if not spec.rope_interleaved:
        return torch.repeat_interleave(torch.arange(3), torch.tensor(sections))
    axis = torch.zeros(spec.rotary_dim // 2, dtype=torch.int64)
    for which in (1, 2):
        axis[which : 3 * sections[which] : 3] = which
    return axis


def turn_pairs(heads: Tensor, angle_T: Tensor, amplitude: float) -> Tensor:
    """Rotate dims 0 and 1 by the first angle, 2 and 3 by the second, and so on, as DeepSeek orders a head.

    Args:
        heads: [T, 1, H, D]
        angle_T: output of PackedRotary, [T, 1, 1, D]: the angles of all pairs, twice.

    Returns:
        [T, 1, H, D], scaled by amplitude; the first dims of all pairs, then their second dims.
    """
    first, second = heads[..., 0::2], heads[..., 1::2]
    angle = angle_T[..., : first.shape[-1]]
    cos, sin = ((value * amplitude).to(heads.dtype) for value in (angle.cos(), angle.sin()))
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def inverse_frequencies(spec: ModelSpec) -> Tensor:
    """Radians per position of each rotated pair of dims, float32 [D / 2]."""
    plain = plain_frequencies(spec.rope_theta, spec.rotary_dim)
    scaling = spec.rope_scaling
    return plain if scaling is None else _SCALINGS[scaling["rope_type"]](plain, spec, scaling)


def plain_frequencies(theta: float, dim: int) -> Tensor:
    """Frequencies without scaling, in radians per position, float32 [dim / 2]."""
    return 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))


def amplitude(spec: ModelSpec) -> float:
    """The factor of sine and cosine with which YaRN keeps attention sharp over a longer context.

    Source: Peng et al. 2023, "YaRN", arXiv:2309.00071, section 3.4; mscale and mscale_all_dim are DeepSeek's.
    """
    scaling = spec.rope_scaling or {}
    if scaling.get("rope_type") != "yarn":
        return 1.0
    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]
    factor, one, all_dims = _factor(spec, scaling), scaling.get("mscale"), scaling.get("mscale_all_dim")
    return _growth(factor, one) / _growth(factor, all_dims) if one and all_dims else _growth(factor, 1.0)


def _growth(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _factor(spec: ModelSpec, scaling: Mapping[str, Any]) -> float:
    return scaling.get("factor") or spec.max_positions / scaling["original_max_position_embeddings"]


def _linear(plain: Tensor, spec: ModelSpec, scaling: Mapping[str, Any]) -> Tensor:
    return plain / scaling["factor"]


def _llama3(plain: Tensor, spec: ModelSpec, scaling: Mapping[str, Any]) -> Tensor:
    """Llama 3.1: low frequencies are divided by `factor`, high ones kept, those between interpolated."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)  # within the old context
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (kept + (1 - kept) / scaling["factor"])


def _yarn(plain: Tensor, spec: ModelSpec, scaling: Mapping[str, Any]) -> Tensor:
    """YaRN: like Llama 3.1, but interpolated over the dim index in place of the frequency."""
    last, context = spec.rotary_dim - 1, scaling["original_max_position_embeddings"]

    def dim_of(turns: float) -> float:
        """The dim, out of D, that makes `turns` rotations within the original context."""
        return spec.rotary_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(spec.rope_theta))

    low, high = dim_of(scaling.get("beta_fast") or 32), dim_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, last)
    if low == high:
        high += 0.001
    slowed = ((torch.arange(len(plain), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain * (1 - slowed) + plain / _factor(spec, scaling) * slowed


_SCALINGS = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}
assert set(_SCALINGS) == set(ROPE_SCALINGS), "MegatronLayout refuses all other scalings"
