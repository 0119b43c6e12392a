"""Pictures: those of a run's prompts, and what is trained of the part of a model that reads them."""

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from hybridrl.config.section import Section


class ImagesConfig(Section):
    """The pictures of prompts: content parts of chat messages have them, or a column, in the order of the
    places for them."""

    field: str = "images"
    """Column with the pictures of a row, which may be absent: a list of paths, data URLs, base64 texts,
    bytes, or {bytes, path}. In a text, <image> stands for each of them."""

    max_tokens: PositiveInt = 1024
    """Most tokens of a picture; a larger one is made smaller first, in the same proportions."""


class VisionConfig(Section):
    """What is trained of the part of a model that reads pictures."""

    mode: Literal["train", "projector", "frozen"] = "train"
    """train: all of it; projector: only the layers that turn its features into the text model's; frozen:
    nothing. A run without data.images trains nothing of it."""

    lr: PositiveFloat | None = None
    """Peak learning rate of what is trained of it, with the schedule of actor.optimizer; None: its lr."""
