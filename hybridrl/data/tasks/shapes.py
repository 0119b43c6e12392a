"""Pictures of two squares, and which colour has the left or the right one.

"<image>l=" asks for the left one. The picture has to be seen, and the place in it to be found.
"""

import io
import random
from typing import Any

from PIL import Image

from hybridrl.errors import ConfigError
from hybridrl.registry import register

COLOURS = ((230, 30, 30), (30, 200, 30), (40, 60, 230), (230, 220, 30))
"""The answer is the number of a colour: red, green, blue, yellow."""

_DARKEST, _BRIGHTEST = 20, 35
"""Grey of the ground, in which every picture differs."""


@register("task", "shapes")
def shapes(seed: int, *, size: int, square: int = 8, shuffled: bool = False) -> list[dict[str, Any]]:
    """Rows with `prompt`, `images` and `answer`.

    Args:
        seed: determines colours, questions and grounds.
        size: number of rows.
        square: pixels on a side of each of the two squares, ground included.
        shuffled: every row has the picture of another one: there is nothing to learn.

    Raises:
        ConfigError: there are no rows, or no room for a square.
    """
    if size < 1 or square < 4:
        raise ConfigError(
            f"shapes: size = {size}, square = {square}", fix="size: 1 or more, square: 4 or more"
        )
    draw = random.Random(seed)
    rows = [_row(draw, square) for _ in range(size)]
    if shuffled:
        pictures = [row["images"] for row in rows]
        draw.shuffle(pictures)
        rows = [{**row, "images": picture} for row, picture in zip(rows, pictures, strict=True)]
    return rows


def _row(draw: random.Random, square: int) -> dict[str, Any]:
    left, right = draw.randrange(len(COLOURS)), draw.randrange(len(COLOURS))
    asked = draw.choice("lr")
    answer = left if asked == "l" else right
    picture = {"bytes": _png(draw, square, (left, right)), "path": None}
    return {"prompt": f"<image>{asked}=", "images": [picture], "answer": str(answer)}


def _png(draw: random.Random, square: int, colours: tuple[int, ...]) -> bytes:
    width, edge = square * len(colours), max(1, square // 8)
    noise = bytes(draw.randint(_DARKEST, _BRIGHTEST) for _ in range(3 * square * width))
    picture = Image.frombytes("RGB", (width, square), noise)
    for place, colour in enumerate(colours):
        inside = (place * square + edge, edge, (place + 1) * square - edge, square - edge)
        picture.paste(COLOURS[colour], inside)
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return out.getvalue()
