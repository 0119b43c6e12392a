"""Pictures as arrays: patches and sizes are those of transformers' processor, places those of its models."""

import numpy as np
import pytest
import torch
from PIL import Image

from hybridrl.errors import ColumnError, ModelError
from hybridrl.models import spec
from hybridrl.models.folder import write_json
from hybridrl.models.patches import grid, patches
from hybridrl.models.pictures import PictureLimits, pictures_of, places, read_limits, stored
from hybridrl.models.tiny_vision import vision_model

KINDS = {"qwen3_vl": 4, "qwen2_5_vl": 14}
SIZES = ((1, 1), (2, 3), (5, 1))


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / request.param
    vision_model(path, request.param, 0, tower={"patch_size": KINDS[request.param]})
    return path


@pytest.fixture(scope="module")
def vision(folder):
    return spec.read(folder).vision


def draw(vision, rows, cols, seed=0):
    side = vision.token_pixels
    return np.random.default_rng(seed).integers(0, 256, (rows * side, cols * side, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_patches_are_those_of_the_processor(folder, vision, size) -> None:
    from transformers import AutoImageProcessor

    shown = draw(vision, *size)
    wanted = AutoImageProcessor.from_pretrained(folder)(images=[Image.fromarray(shown)], return_tensors="pt")
    found = patches(torch.from_numpy(shown), vision)
    assert wanted["image_grid_thw"].tolist() == [list(grid(shown, vision))]
    assert (found - wanted["pixel_values"]).abs().max() < 1e-6


def test_sizes_are_those_of_the_processor() -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    draw, side, limits = np.random.default_rng(0), 28, PictureLimits(4, 256)
    for height, width in draw.integers(10, 1500, (500, 2)).tolist():
        wanted = smart_resize(height, width, side, 4 * side**2, 256 * side**2)
        assert limits.fit(height, width, side) == wanted, (height, width)


def test_a_line_keeps_to_the_limit() -> None:
    height, width = PictureLimits(1, 16).fit(10, 1900, 8)
    assert (height, width) == (8, 128)


def test_places_are_those_of_transformers(folder, vision) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder)
    shown = [draw(vision, *size) for size in SIZES]
    tokens = [1, 2]
    for picture in shown:
        tokens += [vision.image_start, *[vision.image_token] * vision.tokens(*picture.shape[:2]), 3]
    token_T = torch.tensor(tokens)
    wanted, delta = model.model.get_rope_index(
        token_T[None],
        image_grid_thw=torch.tensor([grid(picture, vision) for picture in shown]),
        attention_mask=torch.ones_like(token_T)[None],
        mm_token_type_ids=(token_T == vision.image_token).int()[None],
    )
    found, after = places(token_T.numpy(), [picture.shape[:2] for picture in shown], vision)
    assert found.tolist() == wanted[-3:, 0].tolist()
    assert after == len(tokens) + int(delta)


def test_pictures_come_back_as_they_were_stored(vision) -> None:
    shown = [draw(vision, *size, seed=i) for i, size in enumerate(SIZES)]
    pixels, sizes = stored(shown)
    assert pixels.dtype == np.uint8 and sizes.tolist() == [list(p.shape[:2]) for p in shown]
    assert all(np.array_equal(a, b) for a, b in zip(pictures_of(pixels, sizes), shown, strict=True))
    assert all(np.shares_memory(pixels, view) for view in pictures_of(pixels, sizes))


@pytest.mark.parametrize(
    ("placeholders", "sizes", "has"),
    [(3, [(1, 2)], "fewer pictures"), (1, [(1, 2)], "a larger picture"), (2, [(1, 2)] * 2, "more pictures")],
)
def test_other_placeholders_than_pictures_are_refused(vision, placeholders, sizes, has) -> None:
    tokens = np.array([1, *[vision.image_token] * placeholders, 2])
    side = vision.token_pixels
    with pytest.raises(ColumnError, match=f"{placeholders} placeholders for pictures, and comes with {has}"):
        places(tokens, [(rows * side, cols * side) for rows, cols in sizes], vision)


def test_the_limits_are_those_of_model_and_config_together(folder, vision) -> None:
    assert read_limits(folder, vision, 1024) == PictureLimits(1, 64)
    assert read_limits(folder, vision, 16) == PictureLimits(1, 16)


def test_a_processor_of_another_model_is_refused(folder, vision, tmp_path) -> None:
    write_json(tmp_path / "preprocessor_config.json", {"patch_size": 16, "image_mean": [0.1, 0.1, 0.1]})
    with pytest.raises(ModelError, match="patch_size = 16 in preprocessor_config.json"):
        read_limits(tmp_path, vision, 16)
