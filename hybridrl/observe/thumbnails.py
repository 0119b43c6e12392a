"""Small copies of the pictures of a prompt, for the report."""

import base64
import io
from collections.abc import Sequence

MOST = 4
"""Pictures of a prompt that are kept."""

_SIDE, _QUALITY = 160, 70


def thumbnails(pictures: Sequence[bytes | str]) -> list[str]:
    """The first pictures as data URIs of JPEG; one that cannot be read is left out.

    Args:
        pictures: encoded pictures, or the paths of files.
    """
    return [found for picture in pictures[:MOST] if (found := _thumbnail(picture)) is not None]


def _thumbnail(picture: bytes | str) -> str | None:
    from PIL import Image  # here, because most runs have no pictures

    file, small = io.BytesIO(picture) if isinstance(picture, bytes) else picture, io.BytesIO()
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        image.thumbnail((_SIDE, _SIDE))
        image.save(small, "JPEG", quality=_QUALITY)
    except (OSError, ValueError, Image.DecompressionBombError):  # the run goes on without it
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(small.getvalue()).decode('ascii')}"
