"""Rotary position embedding of packed sequences: every token turns by its position in its own sequence.

Shape letters: T packed tokens, D size of a head.
"""

import math
from typing import Any

import torch
from torch import Tensor

from hybridrl.errors import ModelError
from hybridrl.models.spec import ModelSpec
from hybridrl.trainer.megatron.packing import Packing


class PackedRotary(torch.nn.Module):
    """In place of Megatron's RotaryEmbedding, which walks over the sequences one by one in every layer."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self._frequency = inverse_frequencies(spec)

    def get_rotary_seq_len(self, *unused: Any) -> Packing:
        """Megatron asks for a length here, only to pass it to `forward`; its last argument is the packing."""
        return unused[-1]

    def forward(self, packing: Packing, **unused: Any) -> Tensor:
        """Angles in radians, float32 [T, 1, 1, D]."""
        angle = torch.outer(packing.position_T.float(), self._frequency.to(packing.position_T.device))
        return torch.cat([angle, angle], dim=1)[:, None, None]


def inverse_frequencies(spec: ModelSpec) -> Tensor:
    """Radians per position of each pair of a head's dims, float32 [D / 2].

    Raises:
        ModelError: a kind of rope scaling that is not supported.
    """
    exponent = torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim
    frequency = 1.0 / (spec.rope_theta**exponent)
    if spec.rope_scaling is None:
        return frequency
    kind = spec.rope_scaling["rope_type"]
    if kind != "llama3":
        raise ModelError(
            f"rope scaling {kind!r} is not supported", fix="use a model with default or llama3 scaling"
        )
    return _llama3(frequency, **{k: v for k, v in spec.rope_scaling.items() if k != "rope_type"})


def _llama3(
    frequency: Tensor,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> Tensor:
    """Llama 3.1: slow dims are slowed by `factor`, fast ones kept, those between interpolated."""
    turns = original_max_position_embeddings * frequency / (2 * math.pi)  # within the original context
    kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return frequency * (kept + (1 - kept) / factor)
