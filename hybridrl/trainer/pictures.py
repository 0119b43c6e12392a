"""The pictures of a batch on a trainer rank: which token shows which part of which picture, and where it is.

A placeholder that the policy sampled is a token like any other: only prompts have pictures.
The features of all pictures of a batch are numbered in one row, each prompt's once.
Shape letters: T tokens of a block, U tokens of all blocks, W tokens of a microbatch, G prompts that have
pictures.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hybridrl.batch import TokenBlock
from hybridrl.columns import PIXELS, SIZES
from hybridrl.models.pictures import pictures_of, places
from hybridrl.models.vision import VisionSpec


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures that a microbatch shows, each prompt's once."""

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
        self._pixels_G: list[tuple[np.ndarray, ...]] = []
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
        pixels = tuple(picture for group in groups for picture in self._pixels_G[group])
        sizes = np.array([self._num_tokens(self._pixels_G[group]) for group in groups], np.int64)
        # Features of the groups that are here, end to end, in place of those of the whole batch.
        shift = np.zeros(len(self._first_feature_G) + 1, np.int64)
        shift[groups] = np.cumsum(sizes) - sizes - self._first_feature_G[groups]
        return Shown(
            np.where(real, self._place_3U[:, source], 0),
            np.where(feature_W >= 0, feature_W + shift[group_W], -1),
            Pictures(pixels),
        )

    def _num_tokens(self, pixels: Iterable[np.ndarray]) -> int:
        return sum(self._vision.tokens(*picture.shape[:2]) for picture in pixels)

    def _add(self, block: TokenBlock, at: int) -> None:
        sizes_N, known = block.columns.get(SIZES), dict[int, tuple[np.ndarray, np.ndarray, int]]()
        for n in range(len(block)):
            row, prompt = block.row(n), int(block.prompt_tokens_N[n])
            here = slice(at + row.start, at + row.stop)
            if sizes_N is None or not len(sizes_N[n]):
                self._place_3U[:, here] = np.arange(row.stop - row.start)
                continue
            # All samples of a prompt share its array.
            found = known.get(id(sizes_N[n]))
            if found is None:
                pixels = pictures_of(block.column(PIXELS)[n], sizes_N[n])
                tokens_T = block.token_T[row][:prompt]
                place_3T, after = places(tokens_T, [p.shape[:2] for p in pixels], self._vision)
                feature_T = self._number(tokens_T == self._vision.image_token, pixels)
                found = known[id(sizes_N[n])] = place_3T, feature_T, after
            place_3T, feature_T, after = found
            middle = here.start + prompt
            self._place_3U[:, here.start : middle] = place_3T
            self._place_3U[:, middle : here.stop] = after + np.arange(here.stop - middle)
            self._feature_U[here.start : middle] = feature_T

    def _number(self, shows_T: np.ndarray, pixels: tuple[np.ndarray, ...]) -> np.ndarray:
        first = self._num_features
        self._first_G.append(first)
        self._pixels_G.append(pixels)
        self._num_features += self._num_tokens(pixels)
        return np.where(shows_T, first + np.cumsum(shows_T) - 1, -1)
