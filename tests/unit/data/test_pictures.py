"""Pictures of rows: every form that people have, and every way in which one can be wrong."""

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from picture_specs import small_tower
from PIL import Image

from hybridrl.config.schema import DataConfig
from hybridrl.data.pictures import PictureFormat, encoded, size_of, split
from hybridrl.errors import DataError
from hybridrl.models.pictures import PictureLimits, pictures_of
from hybridrl.types import Prompt

VISION = small_tower(patch_size=4, image_end=10)
FORMAT = PictureFormat(VISION, PictureLimits(1, 16))
DATA = DataConfig.model_validate({"train": "rows.jsonl", "images": {}})
PLAIN = DataConfig.model_validate({"train": "rows.jsonl", "images": {}, "chat_template": "none"})
PART = {"type": "image"}
ASK = {"type": "text", "text": "How many?"}


def picture(width=16, height=8, mode="RGB", seed=0, **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(out, **({"format": "PNG"} | options))
    return out.getvalue()


PNG = picture()
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
USER = [{"role": "user", "content": [PART, ASK]}]


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": [{"role": "user", "content": "<image>How many?"}],
            "images": [{"bytes": PNG, "path": None}],
        },
        {"prompt": "<image>How many?", "images": [URL]},
        {"prompt": "<image>How many?", "images": URL},
        {"prompt": "<image>How many?", "images": [base64.b64encode(PNG).decode()]},
        {"prompt": [{"role": "user", "content": [PART, ASK]}], "images": [PNG]},
        {
            "prompt": [{"role": "user", "content": [PART | {"text": None}, ASK | {"image": None}]}],
            "images": [PNG],
        },
        {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}, ASK]}]},
        {
            "prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": URL}, ASK]}],
            "images": None,
        },
        {"prompt": [{"role": "user", "content": [{"type": "image", "image": URL}, ASK]}], "images": []},
        {"prompt": "<image>How many?", "images": [Image.open(io.BytesIO(PNG))]},
    ],
)
def test_every_writing_of_a_row_is_the_same_prompt_with_the_same_picture(row) -> None:
    prompt, (found,) = split(DATA, row, "row 1")
    assert prompt == USER
    assert np.array_equal(shown(found), shown(PNG))


def shown(*pictures, form: PictureFormat = FORMAT):
    arrays = form.arrays(Prompt("train/0", (), {}, pictures=pictures))
    found = pictures_of(arrays["pixels"], arrays["picture_size"])
    return found[0] if len(found) == 1 else found


def test_files_are_read_where_they_are(tmp_path) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(PNG)
    for value in (str(path), f"file://{path}", {"bytes": None, "path": str(path)}):
        assert encoded(value, "row 1") == str(path)
    assert np.array_equal(shown(str(path)), shown(PNG))


def test_several_pictures_keep_their_order() -> None:
    other = picture(8, 8, seed=1)
    row = {"prompt": "a <image> b <image>", "images": [PNG, other]}
    prompt, pictures = split(DATA, row, "row 1")
    assert [part["type"] for part in prompt[0]["content"]] == ["text", "image", "text", "image"]
    assert pictures == (PNG, other)
    assert FORMAT.tokens(pictures, "row 1") == [2, 1]
    assert [one.shape for one in shown(*pictures)] == [(8, 16, 3), (8, 8, 3)]


def test_a_text_without_a_template_keeps_its_places() -> None:
    assert split(PLAIN, {"prompt": "<image>l=", "images": [PNG]}, "row 1") == ("<image>l=", (PNG,))


def test_a_text_about_tags_stays_as_it_is_without_pictures() -> None:
    assert split(DATA, {"prompt": "What is <image> in HTML?"}, "row 1") == ("What is <image> in HTML?", ())


def test_a_large_picture_is_made_smaller_in_its_proportions() -> None:
    large = picture(400, 200)
    assert FORMAT.tokens([large], "row 1") == [10]  # 2 x 5 of at most 16
    assert shown(large).shape == (16, 40, 3)


def test_a_small_picture_is_made_larger() -> None:
    assert shown(picture(1, 1), form=PictureFormat(VISION, PictureLimits(4, 16))).shape == (16, 16, 3)


def test_pictures_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right
    turned = picture(16, 8, format="PNG", exif=exif)
    assert size_of(turned, "row 1") == (16, 8)
    assert np.array_equal(shown(turned), np.rot90(shown(PNG), -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_kinds_of_pixels_are_shown_as_colours(mode) -> None:
    assert shown(picture(mode=mode, format="TIFF" if mode == "CMYK" else "PNG")).shape == (8, 16, 3)


def test_what_is_transparent_is_white() -> None:
    out = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(out, format="PNG")
    assert (shown(out.getvalue()) == 255).all()


def _gif() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (80 * n, 0, 0)) for n in range(3)]
    frames[0].save(out, format="GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def _bomb() -> bytes:
    """A PNG whose header promises 40,000 x 40,000 pixels."""
    head = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + PNG[33:]
    )


def _wide() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(out, format="PNG")
    return out.getvalue()


MALFORMED = {
    "nothing": (None, "is null, not a picture"),
    "a number": (7, "is a number, not a picture"),
    "an empty text": ("", "not a picture"),
    "an object without a picture": ({"bytes": None, "path": None}, "is null, not a picture"),
    "an empty object": ({}, "is null, not a picture"),
    "a list inside the list": ([PNG], "is a list, not a picture"),
    "an address": ("https://example.org/a.png", "nothing is fetched"),
    "an object with an address": ({"url": "http://example.org/a.png"}, "nothing is fetched"),
    "a bucket": ("s3://bucket/a.png", "nothing is fetched"),
    "no file": ("/nowhere/a.png", "there is no file /nowhere/a.png"),
    "a file that is gone": ("file:///nowhere/a.png", "cannot be read: .*No such file"),
    "a folder": ("file:///", "cannot be read"),
    "a data URL without base64": ("data:image/png,abc", "a data URL without base64"),
    "a data URL without a comma": ("data:image/png;base64", "a data URL without base64"),
    "broken base64": ("data:image/png;base64,@@@", "is not base64"),
    "no bytes": (b"", "cannot be read"),
    "text as bytes": (b"not a picture", "cannot be read"),
    "a page": (b"<html><body>404</body></html>", "cannot be read"),
    "half a header": (PNG[:20], "cannot be read"),
    "another file": (b"%PDF-1.4", "cannot be read"),
    "animated": (_gif(), "is animated, with 3 frames"),
    "16 bits": (_wide(), "has pixels of kind I;16"),
    "a bomb": (_bomb(), "1600000000 pixels"),
    "a line": (picture(400, 1), "more than 200 times as long"),
    "numbers": (picture(mode="F", format="TIFF"), "has pixels of kind F"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_picture_is_refused_with_its_row(name) -> None:
    value, message = MALFORMED[name]
    row = {"prompt": "<image>How many?", "images": [PNG, value][1:]}
    with pytest.raises(DataError, match=message) as found:
        _, pictures = split(DATA, row, "row 3 of a.parquet")
        FORMAT.tokens(pictures, "row 3 of a.parquet")
    assert found.value.what.startswith("row 3 of a.parquet: picture 1")
    assert found.value.fix and found.value.where == "data.images"


def test_a_picture_that_is_damaged_behind_its_header_is_refused_when_it_is_decoded() -> None:
    damaged = picture(64, 64, format="JPEG", quality=95)
    damaged = damaged[: len(damaged) // 2]
    assert FORMAT.tokens([damaged], "row 1") == [16]
    with pytest.raises(DataError, match="^train/0: picture 1 is damaged: image file is truncated"):
        shown(damaged)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "<image><image>", "images": [PNG]},
            "more places for pictures than the 1 of column images",
        ),
        (
            {"prompt": "<image>", "images": [PNG, PNG]},
            "column images has 2 pictures, the prompt has places for 1",
        ),
        ({"prompt": "no place", "images": [PNG]}, "column images has 1 picture, the prompt has places for 0"),
        ({"prompt": USER}, "more places for pictures than the 0 of column images"),
        ({"prompt": "<image>", "images": 7}, "the column of pictures is a number, not a list"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "video"}]}]},
            "type 'video' is neither a text nor",
        ),
        ({"prompt": [{"role": "user", "content": ["<image>"]}]}, "a content part is text, not an object"),
    ],
)
def test_places_and_pictures_have_to_agree(row, message) -> None:
    with pytest.raises(DataError, match=message) as found:
        split(DATA, row, "row 3 of a.parquet")
    assert found.value.what.startswith("row 3 of a.parquet")


def test_pictures_are_resized_once_for_engine_and_trainer(tmp_path) -> None:
    """The same file gives the same bytes, whatever way it comes."""
    path = Path(tmp_path, "a.jpg")
    path.write_bytes(picture(50, 37, format="JPEG"))
    assert np.array_equal(shown(str(path)), shown(path.read_bytes()))
