"""The pictures of a prompt as arrays: how they are stored, how large they may be, where their tokens are.

All pictures of a prompt are one array of bytes, end to end, and a table of their sizes. A picture's tokens
have places along three axes: time, row and column. Text counts on along all three alike. A picture that
begins at p has its tokens at (p, p + row, p + column), and text goes on behind the longer of its sides
(arXiv:2409.12191, 2.1).
Shape letters: T tokens of a prompt, I pictures of a prompt.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybridrl.columns import PIXELS, SIZES
from hybridrl.errors import ColumnError, ModelError
from hybridrl.models.config_json import read_object
from hybridrl.models.vision import VisionSpec

_MOST_RATIO = 200
"""Longest side of a picture relative to its shortest; transformers refuses more."""

_FILE = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """How many tokens a picture may have; another one is made larger or smaller."""

    least: int
    most: int

    def fit(self, height: int, width: int, side: int) -> tuple[int, int]:
        """The size to which a picture of height x width pixels is resized: multiples of `side`, about the
        same proportions (smart_resize of Qwen-VL).

        Raises:
            ValueError: one side is so much longer than the other that nothing would be seen.
        """
        if max(height, width) > _MOST_RATIO * min(height, width):
            raise ValueError(f"one side is more than {_MOST_RATIO} times as long as the other")
        rows, cols = (round(length / side) for length in (height, width))
        if rows * cols > self.most:
            scale = math.sqrt(height * width / self.most)
            rows, cols = (max(1, math.floor(length / scale)) for length in (height, width))
        elif rows * cols < max(1, self.least):
            scale = math.sqrt(max(1, self.least) / (height * width))
            rows, cols = (math.ceil(length * scale) for length in (height, width))
        # A side of one token cannot become shorter: the other one gives way.
        rows, cols = min(rows, self.most // cols or 1), min(cols, self.most // rows or 1)
        return rows * side, cols * side


def read_limits(folder: str | Path, vision: VisionSpec, most: int) -> PictureLimits:
    """The limits of a model, by its preprocessor_config.json, and of a config.

    Args:
        most: data.images.max_tokens, which cannot raise the model's own limit.

    Raises:
        ModelError: the file describes other patches or colours than the model's family has.
    """
    path = Path(folder, _FILE)
    found = read_object(path) if path.is_file() else {}
    wanted = {
        "patch_size": vision.patch_size,
        "merge_size": vision.merge_size,
        "temporal_patch_size": vision.frames,
        "image_mean": list(vision.mean),
        "image_std": list(vision.std),
    }
    for key, value in wanted.items():
        if found.get(key, value) != value:
            raise ModelError(
                f"{key} = {found[key]} in {_FILE}, {value} by the model's config.json and family",
                where=str(path),
                fix="check that the file belongs to the model",
            )
    least, largest = _areas(found)
    area = vision.token_pixels**2
    upper = min(most, largest // area) if largest else most
    return PictureLimits(min(max(1, -(-least // area)), upper), max(1, upper))


def _areas(found: Mapping[str, Any]) -> tuple[int, int]:
    """Least and most pixels of a picture; 0: no limit."""
    size = found.get("size") or {}
    least = size.get("shortest_edge") or found.get("min_pixels") or 0
    return int(least), int(size.get("longest_edge") or found.get("max_pixels") or 0)


def stored(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of a prompt as one array of bytes, and their heights and widths, int64 [I, 2].

    Args:
        pictures: uint8 [height, width, 3] each.
    """
    sizes_I2 = np.array([picture.shape[:2] for picture in pictures], np.int64).reshape(-1, 2)
    return np.concatenate([np.zeros(0, np.uint8), *(p.ravel() for p in pictures)]), sizes_I2


def picture_columns(arrays: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The columns with the pictures of each trajectory; {} if it is a run without pictures.

    Args:
        arrays: what `stored` made of the pictures of each, by name; {}: it shows none. Trajectories that show
            the same ones share the arrays.
    """
    if not any(arrays):
        return {}
    none = {PIXELS: np.zeros(0, np.uint8), SIZES: np.zeros((0, 2), np.int64)}
    columns = {name: np.empty(len(arrays), object) for name in none}
    for n, own in enumerate(arrays):
        for name, column in columns.items():
            column[n] = own.get(name, none[name])
    return columns


def pictures_of(pixels: np.ndarray, sizes_I2: np.ndarray) -> tuple[np.ndarray, ...]:
    """The inverse of `stored`: views [height, width, 3]."""
    found, at = [], 0
    for height, width in sizes_I2.tolist():
        end = at + 3 * height * width
        found.append(pixels[at:end].reshape(height, width, 3))
        at = end
    return tuple(found)


def places(token_T: np.ndarray, sizes: Iterable[Sequence[int]], vision: VisionSpec) -> tuple[np.ndarray, int]:
    """The places of a prompt's tokens along time, row and column, int64 [3, T], and that of the next token.

    Args:
        sizes: height and width of each picture in pixels, in the order of the placeholders.

    Raises:
        ColumnError: there are more or fewer placeholders than the pictures have tokens.
    """
    place_3T = np.empty((3, len(token_T)), np.int64)
    waiting, shows_T = list(sizes), token_T == vision.image_token
    at = now = 0
    while at < len(token_T):
        if not shows_T[at]:
            following = int(shows_T[at:].argmax()) if shows_T[at:].any() else len(token_T) - at
            place_3T[:, at : at + following] = now + np.arange(following)
            at, now = at + following, now + following
            continue
        if not waiting:
            raise _other_number(shows_T, "fewer pictures")
        height, width = (int(pixels) // vision.token_pixels for pixels in waiting.pop(0))
        end = at + height * width
        if end > len(token_T) or not shows_T[at:end].all():
            raise _other_number(shows_T, "a larger picture")
        place_3T[:, at:end] = np.indices((1, height, width)).reshape(3, -1) + now
        at, now = end, now + max(height, width)
    if waiting:
        raise _other_number(shows_T, "more pictures")
    return place_3T, now


def _other_number(shows_T: np.ndarray, has: str) -> ColumnError:
    return ColumnError(f"a prompt has {int(shows_T.sum())} placeholders for pictures, and comes with {has}")
