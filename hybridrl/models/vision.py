"""The part of a model that reads pictures: its sizes, and the text model that it belongs to.

A picture is cut into square patches; merge x merge neighbouring patches become one token of the text model. A
prompt has one placeholder token for each of them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridrl.errors import ModelError

_WHOLE = ("architectures", "dtype", "torch_dtype", "quantization_config")
"""Keys of config.json that say something about text model and tower together."""


Colour = tuple[float, float, float]
"""Numbers for red, green and blue."""


NEVER = -1.0e4
"""Logit of a token that cannot be sampled, and what an engine adds to it. Every float format can hold it, and
its probability is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """Sizes of a vision tower, and the tokens that stand for pictures."""

    depth: int
    """Number of transformer layers of the tower."""

    hidden_size: int
    ffn_size: int
    out_size: int
    """Size of the features, which is the hidden size of the text model."""

    patch_size: int
    """Pixels on a side of a patch."""

    frames: int
    """Frames of a video that a patch spans; a still picture is repeated as often."""

    merge_size: int
    """Patches on a side of what becomes one token."""

    num_positions: int = 0
    """Entries of a trained position embedding; 0: the tower has none."""

    deep_layers: tuple[int, ...] = ()
    """Tower layers whose features are added to the output of the first text layers (DeepStack)."""

    image_token: int
    """Id of the placeholder."""

    image_start: int
    """Id of the token before the first placeholder of a picture."""

    image_end: int
    """Id of the token after the last one."""

    mean: Colour
    """Mean of red, green and blue, as shares of the brightest value; a patch has the distance from it."""

    std: Colour
    """What that distance is divided by."""

    config: str
    """vision_config of config.json as JSON, from which transformers builds the tower."""

    @property
    def token_pixels(self) -> int:
        """Pixels on a side of the square that becomes one token."""
        return self.patch_size * self.merge_size

    @property
    def patch_values(self) -> int:
        """Numbers that the tower is given for each patch."""
        return 3 * self.frames * self.patch_size**2

    def tokens(self, height: int, width: int) -> int:
        """Tokens of a picture whose sides, in pixels, are multiples of token_pixels."""
        return (height // self.token_pixels) * (width // self.token_pixels)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the text model inside.

    Older files have its keys beside vision_config, newer ones in text_config. A tied output layer is a matter
    of the whole model, as the dtype is.
    """
    nested = config.get("text_config")
    if not isinstance(nested, Mapping):
        return {key: value for key, value in config.items() if key != "vision_config"}
    whole = {key: config[key] for key in _WHOLE if config.get(key) is not None}
    tied = config.get("tie_word_embeddings") or nested.get("tie_word_embeddings") or False
    return {**nested, **whole, "tie_word_embeddings": tied}


def read_vision(
    config: Mapping[str, Any], defaults: Mapping[str, Any], *, mean: Colour, std: Colour, where: str
) -> VisionSpec:
    """The vision tower of a model.

    Args:
        config: config.json.
        defaults: values of keys that vision_config leaves out, as transformers reads the architecture.
        mean, std: as in VisionSpec.

    Raises:
        ModelError: a size is no whole number above 0, or does not fit the others.
    """
    own = config.get("vision_config")
    if not isinstance(own, Mapping):
        raise ModelError("config.json has no vision_config", where=where, fix="download the model again")
    given = {**defaults, **{key: value for key, value in own.items() if value is not None}}

    def size(key: str) -> int:
        value = given.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(
                f"vision_config.{key} = {value!r} in config.json is not a whole number above 0",
                where=where,
                fix=f"correct vision_config.{key}, or download the model again",
            )
        return value

    found = VisionSpec(
        depth=size("depth"),
        hidden_size=size("hidden_size"),
        ffn_size=size("intermediate_size"),
        out_size=size("out_hidden_size"),
        patch_size=size("patch_size"),
        frames=size("temporal_patch_size"),
        merge_size=size("spatial_merge_size"),
        num_positions=size("num_position_embeddings") if given.get("num_position_embeddings") else 0,
        deep_layers=tuple(given.get("deepstack_visual_indexes") or ()),
        image_token=_token(config, "image_token_id", where),
        image_start=_token(config, "vision_start_token_id", where),
        image_end=_token(config, "vision_end_token_id", where),
        mean=mean,
        std=std,
        config=json.dumps(dict(own), sort_keys=True),
    )
    _refuse_unfit(found, text_config(config), where)
    return found


def _token(config: Mapping[str, Any], key: str, where: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ModelError(
            f"{key} = {value!r} in config.json is not a token id", where=where, fix="download the model again"
        )
    return value


def _refuse_unfit(vision: VisionSpec, text: Mapping[str, Any], where: str) -> None:
    hidden, layers = text.get("hidden_size"), text.get("num_hidden_layers")
    deepest = max(vision.deep_layers, default=0)
    trials: Sequence[tuple[bool, str]] = (
        (
            vision.out_size == hidden,
            f"vision_config.out_hidden_size = {vision.out_size} is not hidden_size = {hidden}",
        ),
        (
            deepest < vision.depth,
            f"deepstack_visual_indexes names layer {deepest} of a tower with depth = {vision.depth}",
        ),
        (
            len(vision.deep_layers) <= (layers or 0),
            f"deepstack_visual_indexes has {len(vision.deep_layers)} layers, the text model {layers}",
        ),
    )
    for holds, what in trials:
        if not holds:
            raise ModelError(what, where=where, fix="correct config.json, or download the model again")
