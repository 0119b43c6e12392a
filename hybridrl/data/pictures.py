"""The pictures of a row: which there are, what each is, and what becomes of it.

Files stay encoded, or even on the disk, until a prompt is answered; then each is decoded and resized once.
Nobody else resizes, so engine and trainer see the same pixels.
"""

import base64
import binascii
import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from hybridrl.columns import PIXELS, SIZES
from hybridrl.config.schema import DataConfig
from hybridrl.errors import DataError
from hybridrl.models.pictures import PictureLimits, stored
from hybridrl.models.vision import VisionSpec
from hybridrl.types import Prompt
from hybridrl.wording import counted, json_kind

TAG = "<image>"
"""What stands for a picture in a text."""

Encoded = bytes | str
"""An encoded picture, or the path of its file."""

_MOST_PIXELS = 1 << 27
"""Pixels of a picture before it is resized: 400 MB once it is decoded."""

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
"""Pillow's names of the kinds of pixels that can be shown in 8 bits without a choice of their range."""

_SIDEWAYS = (5, 6, 7, 8)
"""Values of EXIF's Orientation that exchange height and width."""

_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """How pictures are given to one model."""

    vision: VisionSpec
    limits: PictureLimits

    def tokens(self, pictures: Sequence[Encoded], place: str) -> list[int]:
        """Tokens of each picture; only headers are read.

        Raises:
            DataError: one cannot be read, or not be shown; the message names the row.
        """
        return [self.vision.tokens(*self._fitted(*size_of(p, at), at)) for p, at in _named(pictures, place)]

    def arrays(self, prompt: Prompt) -> dict[str, np.ndarray]:
        """The columns with the pictures of a prompt: decoded, turned upright, in RGB, and resized. A prompt
        without pictures has them too, without an entry: in a run with pictures no prompt's answer may have a
        placeholder.

        Raises:
            DataError: one is damaged.
        """
        pixels, sizes = stored(self.decode(prompt.pictures, prompt.uid))
        return {PIXELS: pixels, SIZES: sizes}

    def decode(self, pictures: Sequence[Encoded], place: str) -> list[np.ndarray]:
        """The pictures as the model is given them: uint8 [height, width, 3] each.

        Raises:
            DataError: one cannot be read or shown.
        """
        return [self._decoded(picture, at) for picture, at in _named(pictures, place)]

    def _decoded(self, picture: Encoded, place: str) -> np.ndarray:
        with _opened(picture, place) as opened:
            upright = ImageOps.exif_transpose(opened)
            height, width = self._fitted(upright.height, upright.width, place)
            shown = on_white(upright)
            if shown.size != (width, height):
                shown = shown.resize((width, height), Image.Resampling.BICUBIC)
            return np.asarray(shown, np.uint8)

    def _fitted(self, height: int, width: int, place: str) -> tuple[int, int]:
        try:
            return self.limits.fit(height, width, self.vision.token_pixels)
        except ValueError as error:
            raise _refused(f"{place} is {width} x {height} pixels: {error}") from error


def on_white(picture: Image.Image) -> Image.Image:
    """The picture in RGB. Where it is transparent, it shows white, as on a page."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        page = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, over).convert("RGB")
    return picture.convert("RGB")


def size_of(picture: Encoded, place: str) -> tuple[int, int]:
    """Height and width of a picture, turned upright, by its header.

    Raises:
        DataError: it cannot be read, or is of a kind that is not shown.
    """
    with _opened(picture, place) as opened:
        with contextlib.suppress(Exception):  # a damaged EXIF part says nothing of the orientation
            if opened.getexif().get(_ORIENTATION) in _SIDEWAYS:
                return opened.width, opened.height
        return opened.height, opened.width


def split(data: DataConfig, row: Mapping[str, Any], place: str) -> tuple[Any, tuple[Encoded, ...]]:
    """The prompt of a row without its pictures, and these in their order.

    In a prompt of chat messages, a place for a picture is {"type": "image"}; in a text it stays TAG. Without
    data.images the prompt is as it is.

    Raises:
        DataError: there are more or fewer places than pictures, or a picture is none.
    """
    prompt = row.get(data.prompt_field)
    if data.images is None:
        return prompt, ()
    found = _Row(_column(row.get(data.images.field), place), data.images.field, place)
    if isinstance(prompt, str):
        whole: Any = found.of_text(prompt)
        if data.chat_template == "none":
            whole = prompt
        elif found.pictures:
            whole = [{"role": "user", "content": whole}]
        else:
            whole = prompt
    else:
        whole = [found.of_message(m) for m in prompt] if isinstance(prompt, list) else prompt
    found.refuse_left()
    return whole, tuple(found.pictures)


def taken_out(
    messages: Sequence[Any], place: str, waiting: Sequence[Encoded] = ()
) -> tuple[list[Any], list[Encoded]]:
    """Chat messages whose pictures are {"type": "image"}, and these pictures in order.

    Args:
        waiting: pictures for parts that have none of their own, and for TAG; without any, TAG is text.

    Raises:
        DataError: there are more or fewer places than pictures, or a picture is none.
    """
    found = _Row(list(waiting), "of the prompt", place)
    told = [found.of_message(m) if waiting or not isinstance(m.get("content"), str) else m for m in messages]
    found.refuse_left()
    return [{**message, "content": _text_alone(message["content"])} for message in told], found.pictures


def _text_alone(content: Any) -> Any:
    """Content parts that are texts as one text."""
    if not isinstance(content, list) or any(part["type"] != "text" for part in content):
        return content
    return "".join(part["text"] for part in content)


def encoded(value: Any, place: str) -> Encoded:
    """What the file of a picture holds, or its path.

    Args:
        value: bytes, {bytes, path}, a path, a data or file URL, base64 text, or a picture of Pillow.

    Raises:
        DataError: it is none of these, or an address: nothing is fetched in a run.
    """
    if isinstance(value, Mapping):
        parts = [value.get(key) for key in ("bytes", "path", "image", "url")]
        value = next((part for part in parts if part is not None), None)
    if isinstance(value, Image.Image):
        out = io.BytesIO()
        value.save(out, format="PNG")
        return out.getvalue()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str) or not value:
        raise _refused(f"{place} is {json_kind(value)}, not a picture")
    return _from_text(value, place)


def _from_text(value: str, place: str) -> Encoded:
    if value.startswith("data:"):
        head, comma, body = value.partition(",")
        if not comma or ";base64" not in head:
            raise _refused(f"{place} is a data URL without base64: {value[:40]}")
        return _from_base64(body, place)
    if value.startswith("file://"):
        return value.removeprefix("file://")
    if "://" in value[:12]:
        what = f"{place} is at {value[:60]}: nothing is fetched while a run goes on"
        raise DataError(what, where=_WHERE, fix="download it, and give its path")
    with contextlib.suppress(OSError, ValueError):  # a text may be too long for a path
        if Path(value).is_file():
            return value
    if len(value) > 64 and "." not in value[-6:]:
        return _from_base64(value, place)
    raise DataError(f"{place}: there is no file {value[:80]}", where=_WHERE, fix="give the path of a picture")


def _from_base64(text: str, place: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refused(f"{place} is not base64: {error}") from error


class _Row:
    """Finds the pictures of a row in the order of their places."""

    def __init__(self, waiting: list[Any], column: str, place: str) -> None:
        """
        Args:
            waiting: pictures of the column.
        """
        self._waiting, self._given, self._column, self._place = waiting, len(waiting), column, place
        self.pictures: list[Encoded] = []

    def of_message(self, message: Any) -> Any:
        if not isinstance(message, Mapping) or message.get("content") is None:
            return message
        content = message["content"]
        if isinstance(content, str):
            content = self.of_text(content)
        elif isinstance(content, list):
            content = [part for part in (self._of_part(part) for part in content) if part is not None]
        return {**message, "content": content}

    def of_text(self, text: str) -> str | list[dict[str, str]]:
        """Content parts of a text with places for pictures; the text itself if there are none."""
        if TAG not in text or not (self._given or self.pictures):
            return text
        parts: list[dict[str, str]] = []
        for number, words in enumerate(text.split(TAG)):
            parts += [self._take()] if number else []
            parts += [{"type": "text", "text": words}] if words else []
        return parts

    def refuse_left(self) -> None:
        """
        Raises:
            DataError: a picture has no place.
        """
        if self._waiting:
            given = counted(self._given, "picture")
            raise DataError(
                f"{self._place}: column {self._column} has {given}, the prompt has places for "
                f"{self._given - len(self._waiting)}",
                where=_WHERE,
                fix=f"write {TAG} where each belongs, or a content part of type image",
            )

    def _of_part(self, part: Any) -> dict[str, str] | None:
        """A content part of OpenAI's, Qwen's or transformers' form. Arrow gives every part of a list the keys
        of all of them, so values decide."""
        if not isinstance(part, Mapping):
            raise _refused(f"{self._place}: a content part is {json_kind(part)}, not an object")
        kind = part.get("type")
        if kind in ("text", "input_text") and isinstance(part.get("text"), str):
            return {"type": "text", "text": part["text"]} if part["text"] else None
        if kind in ("image", "input_image", "image_url"):
            given = next((part[key] for key in _OWN if part.get(key) is not None), None)
            return self._take(given)
        raise _refused(f"{self._place}: a content part of type {kind!r} is neither a text nor a picture")

    def _take(self, own: Any = None) -> dict[str, str]:
        """The next picture, or the part's own."""
        if own is None:
            if not self._waiting:
                raise DataError(
                    f"{self._place}: the prompt has more places for pictures than the "
                    f"{self._given} of column {self._column}",
                    where=_WHERE,
                    fix="give as many pictures as there are places",
                )
            own = self._waiting.pop(0)
        at = _number(len(self.pictures), self._place)
        self.pictures.append(encoded(own, at))
        return {"type": "image"}


_OWN = ("image_url", "image", "bytes", "path", "url")
"""Keys of a content part that may hold its picture."""


def _column(value: Any, place: str) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, str | bytes | Mapping | Image.Image):
        return [value]
    raise _refused(f"{place}: the column of pictures is {json_kind(value)}, not a list")


def _named(pictures: Sequence[Encoded], place: str) -> Iterator[tuple[Encoded, str]]:
    """Each picture with its name in messages."""
    return ((picture, _number(i, place)) for i, picture in enumerate(pictures))


def _number(index: int, place: str) -> str:
    return f"{place}: picture {index + 1}"


@contextlib.contextmanager
def _opened(picture: Encoded, place: str) -> Iterator[Image.Image]:
    """
    Raises:
        DataError: the picture cannot be read, or is of a kind that is not shown. What is damaged behind its
            header shows when it is decoded.
    """
    source: Any = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes that are refused below
            opened = Image.open(source)
    except Exception as error:  # Pillow's readers raise whatever a damaged header leads to
        raise _refused(f"{place} cannot be read: {_why(error)}") from error
    with opened:
        _refuse_kind(opened, place)
        try:
            yield opened
        except DataError:
            raise
        except Exception as error:  # as above, behind the header
            raise _refused(f"{place} is damaged: {_why(error)}") from error


def _refuse_kind(opened: Image.Image, place: str) -> None:
    width, height = opened.size
    trials: Sequence[tuple[Callable[[], bool], str]] = (
        (lambda: width * height > 0, f"{place} is {width} x {height} pixels"),
        (
            lambda: width * height <= _MOST_PIXELS,
            f"{place} is {width} x {height} pixels, more than {_MOST_PIXELS:,} in all",
        ),
        (
            lambda: opened.mode in _MODES,
            f"{place} has pixels of kind {opened.mode}, whose range of brightness is open",
        ),
        (
            lambda: getattr(opened, "n_frames", 1) == 1,
            f"{place} is animated, with {getattr(opened, 'n_frames', 1)} frames",
        ),
    )
    for holds, what in trials:
        if not holds():
            raise DataError(what, where=_WHERE, fix="convert it to a still picture in 8-bit RGB")


def _why(error: Exception) -> str:
    """The first line of an error, without the address of an object in this process."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text.split(" <_io.BytesIO")[0]


def _refused(what: str) -> DataError:
    return DataError(what, where=_WHERE, fix="correct the picture, or drop the row")


_WHERE = "data.images"
