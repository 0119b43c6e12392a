"""Pictures of requests as SGLang takes them."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from picture_specs import small_tower

from hybridrl.models.pictures import picture_columns, stored
from hybridrl.rollout.base import Request
from hybridrl.rollout.sglang.pictures import PictureInputs, banned, names, refused_pictures
from hybridrl.rollout.sglang.serve import Serving
from hybridrl.types import Sampling

VISION = small_tower()
WIDE = (8, 9, 9, 7, 1)
"""A prompt with a picture of two tokens."""


def arrays(*shapes, seed=0):
    draw = np.random.default_rng(seed)
    pixels, sizes = stored([draw.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes])
    return {"pixels": pixels, "picture_size": sizes}


def request(name="a", ids=WIDE, shown=None):
    sampling = Sampling(num_samples=1, max_response_tokens=2)
    return Request(
        id=name, token_ids=ids, sampling=sampling, arrays=arrays((4, 8)) if shown is None else shown
    )


def test_samples_of_a_prompt_share_what_is_made_of_its_pictures() -> None:
    shown, inputs = arrays((4, 8)), PictureInputs(VISION)
    one, two = (inputs.data(request(name, shown=shown)) for name in "ab")
    assert one is two and one is not None
    (output,) = one
    assert output["format"] == "processor_output" and output["image_grid_thw"].tolist() == [[1, 2, 4]]
    assert output["pixel_values"].shape == (8, VISION.patch_values)
    assert torch.isfinite(output["pixel_values"]).all()


def test_the_pictures_of_a_request_are_end_to_end() -> None:
    (output,) = PictureInputs(VISION).data(request(ids=(9, 9, 1, 9), shown=arrays((4, 8), (4, 4))))
    assert output["image_grid_thw"].tolist() == [[1, 2, 4], [1, 2, 2]]
    assert len(output["pixel_values"]) == 12


def test_text_has_no_pictures() -> None:
    assert PictureInputs(VISION).data(request(ids=(1, 2), shown={})) is None
    none = picture_columns([{}, arrays((4, 4))])
    shown = {name: column[0] for name, column in none.items()}
    assert PictureInputs(VISION).data(request(ids=(1, 2), shown=shown)) is None
    assert picture_columns([{}]) == {}


def test_the_same_text_about_another_picture_is_another_prompt() -> None:
    inputs = PictureInputs(VISION)
    keys = [inputs.key(request(shown=arrays((4, 8), seed=seed))) for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("ids", "shown", "has"),
    [
        ((8, 9, 7), None, "a larger picture"),
        ((8, 9, 9, 9, 7), None, "fewer pictures"),
        ((1, 2), None, "more pictures"),
        ((8, 9, 9, 7), {}, "fewer pictures"),
    ],
)
def test_other_placeholders_than_pictures_are_refused(ids, shown, has) -> None:
    found = refused_pictures(request(ids=ids, shown=shown), VISION)
    assert found is not None and f"comes with {has}" in str(found)
    assert refused_pictures(request(), VISION) is None


def test_a_model_of_text_takes_no_arrays_and_any_tokens() -> None:
    assert names(None) == () and refused_pictures(request(ids=(9, 9), shown={}), None) is None


class Recording:
    """The part of SGLang's TokenizerManager that is used. It notes what it is given, and refuses it."""

    context_len, model_config = 64, SimpleNamespace(vocab_size=10)

    def __init__(self):
        self.asked = []

    async def generate_request(self, asked):
        self.asked.append(asked)
        if asked.sampling_params != {"max_new_tokens": 0, "temperature": 0.0}:
            raise ValueError("enough")
        yield {}


def test_prompts_with_pictures_are_cached_with_them_and_asked_with_them() -> None:
    manager = Recording()

    async def scenario():
        serving = Serving(manager, caches_prefixes=True, returns_experts=False, seed=0, vision=VISION)
        shown, other = arrays((4, 8)), arrays((4, 8), seed=1)
        asked = [request("a", shown=shown), request("b", shown=shown), request("c", shown=other)]
        serving.start([*asked, request("d", ids=(1, 2), shown={})])
        return await asyncio.wait_for(serving.inbox.take(), 1)

    errors = asyncio.run(scenario()).errors
    assert sorted(errors) == ["a", "b", "c", "d"]
    assert len(manager.asked) == 1 or len(manager.asked) == 2
    cached, *_ = manager.asked
    assert [list(ids) for ids in cached.input_ids] == [list(WIDE)] and len(cached.image_data) == 1


def test_the_placeholder_is_banned_in_a_run_with_pictures() -> None:
    from sglang.srt.sampling.sampling_params import SamplingParams

    given = banned(request(), VISION)
    parameters = SamplingParams(max_new_tokens=2, **given)
    parameters.verify(10)
    assert parameters.logit_bias == {"9": -1.0e4}
    assert banned(request(ids=(1, 2), shown=arrays()), VISION) == given  # a prompt of text in such a run
    assert banned(request(ids=(1, 2), shown={}), VISION) == banned(request(), None) == {}
