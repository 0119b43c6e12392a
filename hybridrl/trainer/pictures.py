"""The pictures of a batch on a trainer rank: which token shows which part of which picture, and where it is.

Prompts have pictures, and so has what an environment answers. A placeholder that the policy sampled is like
any other token. The features of all pictures of a batch are numbered in one row, equal pictures once.
Shape letters: T tokens of a block, U tokens of all blocks, W tokens of a microbatch, G different pictures.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hybridrl.batch import TokenBlock
from hybridrl.columns import PIXELS, SIZES
from hybridrl.models.pictures import pictures_of, places
from hybridrl.models.vision import VisionSpec


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures that a microbatch shows, equal ones once."""

    pixels: tuple[np.ndarray, ...]
    """uint8 [height, width, 3] of each, views of the block's column."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a microbatch shows."""

    place_3W: np.ndarray
    """int64: place of each token along time, row and column; 0 for filler."""

    feature_W: np.ndarray
    """int64: row of the microbatch's features that each token shows; -1: it is text."""

    pictures: Pictures


class PictureColumns:
    """Places and features of all tokens of a batch."""

    def __init__(self, blocks: Sequence[TokenBlock], vision: VisionSpec) -> None:
        """
        Raises:
            ColumnError: a prompt has more or fewer placeholders than its pictures have tokens.
        """
        self._vision = vision
        self._first_G: list[int] = []
        self._pixels_G: list[np.ndarray] = []
        self._known: dict[bytes, int] = {}
        """Digest of a picture -> the row of its first feature."""

        self._num_features = 0
        num_tokens = sum(len(block.token_T) for block in blocks)
        self._place_3U = np.zeros((3, num_tokens), np.int64)
        self._feature_U = np.full(num_tokens, -1)
        at = 0
        for block in blocks:
            self._add(block, at)
            at += len(block.token_T)
        self._first_feature_G = np.array(self._first_G, np.int64)

    def shown(self, source_W: np.ndarray) -> Shown:
        """
        Args:
            source_W: index of each token among those of all blocks; -1 for filler.
        """
        source, real = source_W.clip(min=0), source_W >= 0
        feature_W = np.where(real, self._feature_U[source], -1)
        group_W = np.searchsorted(self._first_feature_G, feature_W, side="right") - 1
        groups = np.unique(group_W[feature_W >= 0])
        pixels = tuple(self._pixels_G[group] for group in groups)
        sizes = np.array([self._vision.tokens(*picture.shape[:2]) for picture in pixels], np.int64)
        # Features of the pictures that are here, end to end, in place of those of the whole batch.
        shift = np.zeros(len(self._first_feature_G) + 1, np.int64)
        shift[groups] = np.cumsum(sizes) - sizes - self._first_feature_G[groups]
        return Shown(
            np.where(real, self._place_3U[:, source], 0),
            np.where(feature_W >= 0, feature_W + shift[group_W], -1),
            Pictures(pixels),
        )

    def _add(self, block: TokenBlock, at: int) -> None:
        sizes_N, known = block.columns.get(SIZES), dict[tuple[int, bytes], _Row]()
        for n in range(len(block)):
            row, prompt = block.row(n), int(block.prompt_tokens_N[n])
            here = slice(at + row.start, at + row.stop)
            if sizes_N is None or not len(sizes_N[n]):
                self._place_3U[:, here] = np.arange(row.stop - row.start)
                continue
            # Samples of a prompt share its array and its tokens, which are read once.
            key = id(sizes_N[n]), block.token_T[row][:prompt].tobytes()
            found = known.get(key)
            if found is None:
                pixels = pictures_of(block.column(PIXELS)[n], sizes_N[n])
                found = self._read(block, n, prompt, pixels)
                if len(found.feature_T) == prompt:
                    known[key] = found
            end = here.start + len(found.feature_T)
            self._place_3U[:, here.start : end] = found.place_3T
            self._place_3U[:, end : here.stop] = found.after + np.arange(here.stop - end)
            self._feature_U[here.start : end] = found.feature_T

    def _read(self, block: TokenBlock, n: int, prompt: int, pixels: Sequence[np.ndarray]) -> "_Row":
        """The part of a row up to its last picture, or the prompt if all are in it."""
        row = block.row(n)
        token_T = np.array(block.token_T[row], np.int64)
        # Nothing that was sampled after the prompt shows a picture.
        token_T[prompt:][block.loss_mask_T[row][prompt:]] = -1
        counts = [self._vision.tokens(*picture.shape[:2]) for picture in pixels]
        if int((token_T[:prompt] == self._vision.image_token).sum()) >= sum(counts):
            token_T = token_T[:prompt]
        place_3T, after = places(token_T, [p.shape[:2] for p in pixels], self._vision)
        feature_T = np.full(len(token_T), -1)
        firsts = [self._first_feature(picture, count) for picture, count in zip(pixels, counts, strict=True)]
        rows = [first + np.arange(count) for first, count in zip(firsts, counts, strict=True)]
        feature_T[token_T == self._vision.image_token] = np.concatenate(rows)
        return _Row(place_3T, feature_T, after)

    def _first_feature(self, picture: np.ndarray, count: int) -> int:
        """The row of the first of a picture's features; the same for equal pictures."""
        digest = hashlib.blake2b(repr(picture.shape).encode() + picture.tobytes(), digest_size=16).digest()
        if digest not in self._known:
            self._known[digest] = self._num_features
            self._first_G.append(self._num_features)
            self._pixels_G.append(picture)
            self._num_features += count
        return self._known[digest]


@dataclass(frozen=True, slots=True)
class _Row:
    """The beginning of a row, with all of its pictures."""

    place_3T: np.ndarray
    feature_T: np.ndarray
    after: int
    """Place of the next token, from which text counts on."""
