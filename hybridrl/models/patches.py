"""What a vision tower is given for a picture: one row of numbers for each patch."""

import numpy as np
import torch
from torch import Tensor

from hybridrl.models.vision import VisionSpec


def patches(pixels_HWC: Tensor, vision: VisionSpec) -> Tensor:
    """The patches of a picture as transformers' Qwen2VLImageProcessor orders them, float32 [patches, values].

    Patches that become one token are neighbours. A still picture is repeated for each frame.

    Args:
        pixels_HWC: uint8 [height, width, 3]; both sides are multiples of vision.token_pixels.
    """
    height, width, _ = pixels_HWC.shape
    size, merge, side = vision.patch_size, vision.merge_size, vision.token_pixels
    scaled = (pixels_HWC.permute(2, 0, 1).float() / 255 - _colour(vision.mean, pixels_HWC)) / _colour(
        vision.std, pixels_HWC
    )
    parts = scaled.view(1, 3, height // side, merge, size, width // side, merge, size)
    parts = parts.expand(vision.frames, *parts.shape[1:])
    return parts.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(-1, vision.patch_values)


def _colour(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device)[:, None, None]


def grid(picture: Tensor | np.ndarray, vision: VisionSpec) -> tuple[int, int, int]:
    """Frames, rows and columns of patches of a picture [height, width, 3] (grid_thw)."""
    height, width = picture.shape[:2]
    return 1, height // vision.patch_size, width // vision.patch_size
