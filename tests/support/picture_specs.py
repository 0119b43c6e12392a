"""A vision tower of one small layer, for tests that compute nothing with it."""

from typing import Any

from hybridrl.models.vision import VisionSpec


def small_tower(**changes: Any) -> VisionSpec:
    given: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 8,
        "ffn_size": 8,
        "out_size": 8,
        "patch_size": 2,
        "frames": 2,
        "merge_size": 2,
        "image_token": 9,
        "image_start": 8,
        "image_end": 7,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "config": "{}",
    }
    return VisionSpec(**given | changes)
