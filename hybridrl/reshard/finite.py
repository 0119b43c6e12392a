"""Refuses NaN and infinity in weights that were loaded: every element, where only a share was read before."""

from collections.abc import Iterable, Mapping

import torch

from hybridrl.errors import ModelError
from hybridrl.wording import counted

_AT_ONCE = 1 << 24
"""Elements that are read together."""


def refuse_nonfinite(
    loaded: Iterable[torch.Tensor], sources: Mapping[str, torch.Tensor], *, where: str
) -> None:
    """
    Args:
        loaded: the tensors of a rank, filled from the sources. Each is read once.
        sources: name in the checkpoint -> tensor; they are read only if a loaded one is not finite.
        where: the folder, for the error.

    Raises:
        ModelError: names the tensor of the checkpoint, or the dtype in which a finite one is infinite.
    """
    wrong = [tensor for tensor in loaded if not _is_finite(tensor)]
    if not wrong:
        return
    for name, tensor in sources.items():
        if count := int((~torch.isfinite(tensor)).sum()):
            raise ModelError(
                f"{name} holds NaN or infinity {counted(count, 'time')}",
                where=where,
                fix="use a checkpoint from before its training diverged",
            )
    raise ModelError(
        f"weights are infinite in {str(wrong[0].dtype).removeprefix('torch.')}, and finite in the checkpoint",
        where=where,
        fix="load them in bf16 or fp32",
    )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether every element is; a sum shows it in one pass, with little memory beside the tensor."""
    if not tensor.is_floating_point() or tensor.is_meta:
        return True
    parts = tensor.reshape(-1).split(_AT_ONCE)
    return all(bool(part.sum(dtype=torch.float32).isfinite()) or _all_finite(part) for part in parts)


def _all_finite(part: torch.Tensor) -> bool:
    """The exact answer, where finite numbers have an infinite sum."""
    return bool(torch.isfinite(part).all())
