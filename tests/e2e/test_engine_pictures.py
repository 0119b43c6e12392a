"""SGLang with models that read pictures: its answers against transformers, before and after a swap."""

import asyncio
from dataclasses import replace

import engine_values as values
import numpy as np
import pytest
import torch
import vision_values as vision

from hybridrl.errors import EngineError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models import spec
from hybridrl.models.pictures import stored
from hybridrl.rollout.base import Request
from hybridrl.rollout.sglang.sizes import SGLangParallel
from hybridrl.rollout.sglang.start import SGLangEngine
from hybridrl.types import Prompt

SAMPLES = 4


@pytest.fixture(
    scope="module",
    params=["qwen3_vl", *(pytest.param(n, marks=pytest.mark.slow) for n in ("qwen3_vl_moe", "qwen2_5_vl"))],
    ids=str,
)
def folders(request, tmp_path_factory):
    """Two models of a kind with other weights in all parts."""
    path = tmp_path_factory.mktemp("model")
    depth = 4 if request.param == "qwen3_vl_moe" else 3  # SGLang adds the features of three layers
    return [vision.make_model(path / str(seed), request.param, seed, depth) for seed in (1, 2)]


@pytest.fixture(scope="module")
def engine(folders):
    options = {"parallel": SGLangParallel(tp=1), "max_prompt_tokens": 96}
    engine = SGLangEngine(values.setup(folders[0], **options))
    yield engine
    engine.shutdown()


def asked(folder, seed=0):
    """A prompt with two pictures, one with one, one of text."""
    shown = spec.read(folder).vision
    block = vision.make_block(shown, seed)
    prompts = []
    for n in range(0, len(block), vision.SAMPLES):
        tokens = block.token_T[block.row(n)][: block.prompt_tokens_N[n]].tolist()
        arrays = {"pixels": block.columns["pixels"][n], "picture_size": block.columns["picture_size"][n]}
        prompts.append(Prompt(f"train/{n}", tuple(tokens), {}, arrays=arrays))
    return prompts


def difference(folder, block):
    """Largest difference of a log-probability from transformers', at temperature 1. No placeholder was
    sampled."""
    model, shown, worst = vision.load_plain(folder), spec.read(folder).vision, 0.0
    for n in range(len(block)):
        row, prompt = block.row(n), int(block.prompt_tokens_N[n])
        assert shown.image_token not in block.token_T[row][prompt:]
        end = row.stop - row.start
        with torch.no_grad():
            logp = vision.row_logp(model, block, n, end, shown, 1.0).numpy()
        found = block.columns["rollout_logp"][row][:end]
        worst = max(worst, float(np.abs(found - logp)[prompt:].max(initial=0.0)))
    return worst


def test_answers_to_pictures_have_the_probabilities_of_transformers(engine, folders) -> None:
    options = values.sampling(num_samples=SAMPLES, max_response_tokens=8)
    _, block = values.answer(engine, asked(folders[0]), options)
    assert difference(folders[0], block) < values.TOLERANCE
    again = values.answer(engine, asked(folders[0]), options)[1]
    assert np.array_equal(again.token_T, block.token_T)


def test_the_same_text_about_other_pictures_is_answered_by_the_pictures(engine, folders) -> None:
    prompt = asked(folders[0])[1]
    dark = prompt.arrays | {"pixels": np.zeros_like(prompt.arrays["pixels"])}
    options = values.sampling(num_samples=SAMPLES, max_response_tokens=8)
    _, block = values.answer(engine, [prompt, replace(prompt, arrays=dark)], options)
    assert difference(folders[0], block) < values.TOLERANCE


def test_the_block_has_the_pictures_of_a_prompt_once(engine, folders) -> None:
    options = values.sampling(num_samples=SAMPLES)
    _, block = values.answer(engine, asked(folders[0])[:2], options)
    assert len({id(pixels) for pixels in block.columns["pixels"]}) == 2


def test_a_swap_changes_the_tower_for_pictures_that_were_seen_before(engine, folders) -> None:
    model = spec.read(folders[1])
    try:
        values.swap_in_place(engine, MegatronLayout(model, tp=2), SGLangLayout(model), folders[1])
        _, block = values.answer(engine, asked(folders[0]), values.sampling(num_samples=SAMPLES))
        assert difference(folders[1], block) < values.TOLERANCE
    finally:
        values.swap_in_place(engine, MegatronLayout(model), SGLangLayout(model), folders[0])


def test_the_loader_agrees_with_the_layout(engine, folders) -> None:
    assert asyncio.run(engine.probe_loader(SGLangLayout(spec.read(folders[0])))) is None


@pytest.mark.parametrize("change", ["fewer", "more", "none", "text"])
def test_other_placeholders_than_pictures_are_refused_and_the_engine_goes_on(engine, folders, change) -> None:
    prompt, token = asked(folders[0])[1], spec.read(folders[0]).vision.image_token
    ids = list(prompt.token_ids)
    arrays = prompt.arrays
    if change == "fewer":
        ids.remove(token)
    elif change == "more":
        ids.insert(ids.index(token), token)
    elif change == "none":
        pixels, sizes = stored([])
        arrays = {"pixels": pixels, "picture_size": sizes}
    else:
        arrays = {}
    bad = Request(id=change, token_ids=tuple(ids), sampling=values.sampling(), arrays=arrays)
    with pytest.raises(EngineError, match="placeholders for pictures"):
        asyncio.run(engine.request(bad))
    values.answer(engine, asked(folders[0]), values.sampling())
