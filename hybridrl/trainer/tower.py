"""The vision tower of any backend: what of it is trained, and the features that it makes of pictures.

Shape letters: F features of a microbatch, H hidden size.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hybridrl.models.families._vision import projector
from hybridrl.models.patches import grid, patches
from hybridrl.models.vision import VisionSpec
from hybridrl.trainer.pictures import Pictures

Mode = Literal["train", "projector", "frozen"]
"""Values of actor.vision.mode."""


def is_trained(name: str, mode: Mode) -> bool:
    """
    Args:
        name: of a parameter in transformers' module of the tower.
    """
    return mode == "train" or (mode == "projector" and projector(name))


def encode(
    tower: Callable[..., Any], vision: VisionSpec, pictures: Pictures, device: torch.device
) -> tuple[Tensor, Sequence[Tensor]]:
    """Features of all pictures end to end, [F, H], and the deep ones."""
    pixels = [torch.tensor(picture).to(device) for picture in pictures.pixels]
    grids = torch.tensor([grid(picture, vision) for picture in pixels], device=device)
    found = tower(torch.cat([patches(picture, vision) for picture in pixels]), grid_thw=grids)
    return found.pooler_output, tuple(getattr(found, "deepstack_features", None) or ())
