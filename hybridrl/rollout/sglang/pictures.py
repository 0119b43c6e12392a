"""Pictures of requests as SGLang takes them: what its processor would make, with the placeholders in place.

SGLang then neither decodes nor resizes nor tokenises. It finds the runs of placeholders, and computes places
from the grid. A prompt with other placeholders than its pictures have tokens would get wrong answers without
an error, or end a scheduler.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hybridrl.columns import PIXELS, SIZES
from hybridrl.errors import ColumnError, EngineError
from hybridrl.models.patches import grid, patches
from hybridrl.models.pictures import pictures_of, places
from hybridrl.models.vision import NEVER, VisionSpec
from hybridrl.rollout.base import Request

Key = tuple[tuple[int, ...], bytes]
"""Tokens of a prompt, and a digest of its pictures."""


class PictureInputs:
    """The pictures of one lot of requests. Samples of a prompt share its arrays, which are read once."""

    def __init__(self, vision: VisionSpec | None) -> None:
        """
        Args:
            vision: the part of the model that reads pictures; None: there is none.
        """
        self._vision = vision
        self._made: dict[int, list[dict[str, Any]]] = {}
        self._digests: dict[int, bytes] = {}
        self._known: dict[int, np.ndarray] = {}

    def data(self, request: Request) -> list[dict[str, Any]] | None:
        """`image_data` of a request; None: its prompt is text."""
        if not has_pictures(request):
            return None
        name = self._name(request)
        if name not in self._made:
            self._made[name] = [self._output(request.arrays)]
        return self._made[name]

    def key(self, request: Request) -> Key:
        """What is equal for requests with the same prompt and pictures."""
        if not has_pictures(request):
            return request.token_ids, b""
        name = self._name(request)
        if name not in self._digests:
            pixels = request.arrays[PIXELS].tobytes()
            self._digests[name] = hashlib.blake2b(pixels, digest_size=16).digest()
        return request.token_ids, self._digests[name]

    def _name(self, request: Request) -> int:
        """The id of the request's pixels, which are kept: another array could get the id of a freed one."""
        pixels = request.arrays[PIXELS]
        self._known[id(pixels)] = pixels
        return id(pixels)

    def _output(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        assert self._vision is not None, "refused_pictures has looked at it"
        vision, shown = self._vision, pictures_of(arrays[PIXELS], arrays[SIZES])
        return {
            "format": "processor_output",
            "pixel_values": torch.cat([patches(torch.tensor(picture), vision) for picture in shown]),
            "image_grid_thw": torch.tensor([grid(picture, vision) for picture in shown]),
        }


def has_pictures(request: Request) -> bool:
    return len(request.arrays.get(SIZES, ())) > 0


def banned(request: Request, vision: VisionSpec | None) -> dict[str, Any]:
    """The sampling parameter that bans the placeholder, in a run with pictures; otherwise {}."""
    if vision is None or SIZES not in request.arrays:
        return {}
    return {"logit_bias": {str(vision.image_token): NEVER}}


def names(vision: VisionSpec | None) -> Sequence[str]:
    """Names of the arrays that a model takes."""
    return (PIXELS, SIZES) if vision is not None else ()


def refused_pictures(request: Request, vision: VisionSpec | None) -> EngineError | None:
    """Why a request cannot be answered because of its pictures; None: it can.

    Args:
        vision: as in PictureInputs.
    """
    if vision is None:
        return None
    try:
        sizes = request.arrays.get(SIZES, np.zeros((0, 2), np.int64))
        places(np.array(request.token_ids, np.int64), sizes.tolist(), vision)
    except ColumnError as error:
        return EngineError(
            f"request {request.id!r}: {error.what}",
            fix="give a prompt as many placeholders as its pictures have tokens, and no others",
        )
    return None
