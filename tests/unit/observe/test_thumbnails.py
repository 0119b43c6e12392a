"""Small copies of pictures, which the report shows."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from hybridrl.observe.thumbnails import MOST, thumbnails


def encoded(size: tuple[int, int] = (640, 320), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 128).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_a_picture_becomes_a_small_one_of_the_same_shape(mode: str) -> None:
    (uri,) = thumbnails([encoded(mode=mode)])
    kind, _, text = uri.partition(",")
    assert kind == "data:image/jpeg;base64" and len(uri) < 20_000
    assert Image.open(io.BytesIO(base64.b64decode(text))).size == (160, 80)


def test_pictures_are_read_from_files_and_the_first_ones_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    assert len(thumbnails([str(tmp_path / "a.png")] * (MOST + 2))) == MOST


def test_what_cannot_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert thumbnails([b"no picture", encoded()[:200], str(tmp_path / "gone.png")]) == []
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert thumbnails([encoded()]) == []
