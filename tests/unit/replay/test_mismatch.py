"""Planted causes of a difference between trainer and engine are recovered, each in three sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hybridrl.replay.mismatch import CAUSES, Compute, Recorded, Split, Variant, lines, split
from hybridrl.replay.sampling import shifts

TOKENS, VOCABULARY, ROWS = 240, 50, 12
DRAW = np.random.default_rng(5)
LOGITS = torch.from_numpy(DRAW.normal(size=(TOKENS, VOCABULARY)) * 2)
TOKEN = LOGITS.argsort(-1, descending=True)[:, 0]
LOGP = LOGITS.log_softmax(-1).gather(1, TOKEN[:, None])[:, 0].numpy()
NOISE = {cause: DRAW.normal(size=TOKENS) for cause in CAUSES}
TRAJECTORY = np.repeat(np.arange(ROWS), TOKENS // ROWS)
OLD = TRAJECTORY % 3 == 0
"""Tokens of an older version."""

BASE = Recorded(
    engine_V=LOGP,
    trainer_V=LOGP,
    version_V=np.where(OLD, 6, 7),
    trajectory_V=TRAJECTORY,
    current=7,
    has_experts=True,
    kept_versions=frozenset({6}),
    other_tokens_N=np.arange(ROWS) == 4,
)
SIZES = (3e-3, 3e-2, 0.3)


def computes(cause: str, size: float) -> Compute:
    """A trainer that has one cause of a difference, which goes when it computes as the engine does."""

    def compute(variant: Variant) -> np.ndarray:
        found = LOGP.copy()
        fault = size * NOISE[cause]
        if cause == "packing" and not variant.alone:
            found += fault
        if cause == "routing" and variant.experts == "trainer":
            found += fault
        if cause == "precision" and variant.precision == "run":
            found += fault
        if cause == "stale weights" and variant.version != 6:
            found += np.where(OLD, fault, 0.0)
        return found

    return compute


def engine(cause: str, size: float) -> np.ndarray:
    """What the engine recorded."""
    if cause == "tokenisation":
        return LOGP + np.where(TRAJECTORY == 4, size * NOISE[cause], 0.0)
    if cause == "unexplained":
        return LOGP + np.where(TRAJECTORY != 4, size * NOISE[cause], 0.0)
    if cause == "sampling mask":
        name = {3e-3: "top_p 0.99", 3e-2: "top_p 0.9", 0.3: "temperature times 0.7"}[size]
        return LOGP + shifts(LOGITS, TOKEN)[name].numpy()
    return LOGP


def recovered(cause: str, size: float, base: Recorded = BASE) -> tuple[Recorded, Split]:
    compute = computes(cause, size)
    recorded = replace(base, engine_V=engine(cause, size), trainer_V=compute(Variant()))
    ways = {name: shift.numpy() for name, shift in shifts(LOGITS, TOKEN).items()}
    return recorded, split(recorded, compute, lambda: ways)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cause", CAUSES)
def test_a_planted_cause_is_recovered_and_no_other_is_named(cause: str, size: float) -> None:
    recorded, found = recovered(cause, size)
    difference = recorded.engine_V - recorded.trainer_V
    assert np.abs(difference).max() > size / 100
    np.testing.assert_allclose(found.parts[cause], difference, atol=1e-12)
    assert all(np.abs(part).max() < 1e-12 for other, part in found.parts.items() if other != cause)


@pytest.mark.parametrize("size", SIZES)
def test_two_causes_are_told_apart(size: float) -> None:
    packing, experts = computes("packing", size), computes("routing", size)

    def compute(variant: Variant) -> np.ndarray:
        return packing(variant) + experts(variant) - LOGP

    found = split(replace(BASE, trainer_V=compute(Variant())), compute, dict)
    for cause in ("packing", "routing"):
        np.testing.assert_allclose(found.parts[cause], -size * NOISE[cause], atol=1e-12)


def test_what_is_left_of_a_version_without_a_checkpoint_is_stale() -> None:
    recorded, found = recovered("stale weights", 0.1, replace(BASE, kept_versions=frozenset()))
    np.testing.assert_allclose(
        found.parts["stale weights"], recorded.engine_V - recorded.trainer_V, atol=1e-12
    )
    assert found.lost_versions == (6,)
    assert any("no checkpoint of version 6" in line for line in lines(recorded, found))


def test_the_way_to_sample_is_named() -> None:
    recorded, found = recovered("sampling mask", 0.3)
    assert found.sampling == "temperature times 0.7"
    said = list(lines(recorded, found))
    assert "the engine's probabilities are those of temperature times 0.7" in said
    assert said[0].startswith("240 tokens, the engine less the trainer: ")


def test_equal_sides_have_no_cause_and_nobody_asks_how_tokens_were_sampled() -> None:
    def never() -> dict[str, np.ndarray]:
        raise AssertionError("asked")

    found = split(BASE, lambda variant: LOGP, never)
    assert all(not part.any() for part in found.parts.values()) and not found.sampling


def test_parts_add_up_to_the_difference() -> None:
    fault = np.where(TRAJECTORY != 4, 0.1 * NOISE["unexplained"], 0.0)
    recorded = replace(BASE, engine_V=LOGP + fault, trainer_V=LOGP - 0.2 * NOISE["precision"])
    found = split(recorded, computes("packing", 0.05), dict)
    total = np.sum(list(found.parts.values()), axis=0)
    np.testing.assert_allclose(total, recorded.engine_V - recorded.trainer_V, atol=1e-12)
