"""Which token of a microbatch shows which part of which picture."""

import numpy as np
import pytest
import torch
import trainer_values as values
import vision_values
from picture_specs import small_tower

from hybridrl.batch import TokenBlock
from hybridrl.errors import ColumnError
from hybridrl.models.pictures import places, stored
from hybridrl.trainer.packing import PackedBatch, idle_microbatch
from hybridrl.trainer.places import TokenPartition

VISION = small_tower(image_token=17, image_start=16, image_end=18)
CPU = torch.device("cpu")


WHOLE = TokenPartition()


def packed(block, partition=WHOLE):
    return PackedBatch(vision_values.make_batch(block, []), CPU, partition, VISION)


@pytest.fixture
def block():
    return vision_values.make_block(VISION)


def tokens_of(rows):
    """Tokens of the pictures of these rows' prompts, each prompt's once."""
    prompts = sorted({row // vision_values.SAMPLES for row in rows})
    return sum(rows * cols for prompt in prompts for rows, cols in vision_values.SIZES[prompt])


@pytest.mark.parametrize("rows", [range(12), range(3), [0, 5, 9], [4, 3, 11], [6, 7], [8]])
def test_samples_of_a_prompt_share_its_pictures(block, rows) -> None:
    packing = packed(block).microbatch(rows).packing
    feature_T, tokens = packing.feature_T, tokens_of(rows)
    shown = feature_T[feature_T >= 0]
    assert sorted(set(shown.tolist())) == list(range(tokens))
    sizes = [p.shape[:2] for p in packing.pictures.pixels] if packing.pictures else []
    assert sum(VISION.tokens(*size) for size in sizes) == tokens


def test_features_are_at_the_placeholders_in_their_order(block) -> None:
    microbatch = packed(block).microbatch(range(12))
    feature_T = microbatch.packing.feature_T
    assert ((feature_T >= 0) == (microbatch.token_T == VISION.image_token)).all()
    at = 0
    for count, length in microbatch.packing.runs:
        for _ in range(count):
            own = feature_T[at : at + length]
            own = own[own >= 0].tolist()
            assert own == list(range(own[0], own[0] + len(own))) if own else True
            at += length


def test_a_prompt_whose_tokens_are_scored_shows_its_pictures_too(block) -> None:
    scored = block.loss_mask_T | True
    scored[block.start_N[:-1]] = False
    columns = {name: block.columns[name] for name in ("pixels", "picture_size")}
    zero_T = np.zeros(len(scored), np.float32)
    columns |= {"rollout_logp": zero_T, "version": zero_T.astype(np.int32)}
    whole = TokenBlock(block.token_T, block.start_N, block.prompt_tokens_N, scored, columns)
    packing, usual = (packed(one).microbatch(range(12)).packing for one in (whole, block))
    assert (packing.feature_T >= 0).sum() == (usual.feature_T >= 0).sum() > 0


def test_places_are_those_of_each_sequence(block) -> None:
    microbatch = packed(block).microbatch([0])
    row, prompt = block.row(0), int(block.prompt_tokens_N[0])
    sizes = block.columns["picture_size"][0].tolist()
    wanted, after = places(block.token_T[row][:prompt], sizes, VISION)
    found = microbatch.packing.place_3T.numpy()
    assert np.array_equal(found[:, :prompt], wanted)
    assert found[:, prompt:].tolist() == [list(range(after, after + found.shape[1] - prompt))] * 3


def test_a_placeholder_that_was_sampled_is_a_token_like_any_other(block) -> None:
    row = block.row(0)
    tokens = block.token_T.copy()
    tokens[row.start + block.prompt_tokens_N[0]] = VISION.image_token
    sampled = TokenBlock(tokens, block.start_N, block.prompt_tokens_N, block.loss_mask_T, block.columns)
    found, plain = (packed(one).microbatch([0]).packing for one in (sampled, block))
    assert torch.equal(found.feature_T, plain.feature_T) and torch.equal(found.place_3T, plain.place_3T)


@pytest.mark.parametrize("size", [2])
def test_every_context_parallel_rank_has_its_tokens_and_all_pictures(block, size) -> None:
    whole = packed(block).microbatch(range(12))
    parts = [packed(block, TokenPartition(rank=r, size=size)).microbatch(range(12)) for r in range(size)]
    shown = torch.cat([part.packing.feature_T for part in parts])
    assert sorted(shown[shown >= 0].tolist()) == sorted(
        whole.packing.feature_T[whole.packing.feature_T >= 0].tolist()
    )
    assert all(len(p.packing.pictures.pixels) == len(whole.packing.pictures.pixels) for p in parts)


def test_filler_shows_nothing(block) -> None:
    packing = packed(block, TokenPartition(tp=8)).microbatch([0]).packing
    filler = packing.source_T < 0
    assert filler.any() and (packing.feature_T[filler] == -1).all()


def test_a_batch_of_text_has_neither_places_nor_features() -> None:
    batch = values.make_batch([])
    packing = PackedBatch(batch, CPU, TokenPartition(), VISION).microbatch(range(12)).packing
    assert packing.place_3T is None and packing.feature_T is None and packing.pictures is None
    assert idle_microbatch(TokenPartition(), CPU).packing.pictures is None


def test_a_prompt_whose_pictures_do_not_fit_is_refused(block) -> None:
    pixels, sizes = stored([np.zeros((8, 8, 3), np.uint8)])
    block.columns["pixels"][:], block.columns["picture_size"][:] = None, None
    for n in range(len(block)):
        block.columns["pixels"][n], block.columns["picture_size"][n] = pixels, sizes
    with pytest.raises(ColumnError, match="placeholders for pictures"):
        packed(block)
