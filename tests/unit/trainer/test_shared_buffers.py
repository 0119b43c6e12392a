"""Sums through shared memory against sums in order and gloo's; what a rank that is lost or late leaves."""

import time
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import pytest
import shared_buffer_ranks as scenarios
import torch
from gloo_ranks import GlooRanks

from hybridrl.cluster.collectives import is_of_collective

SIZES = (12, 200_010, 65_536 * 6)
"""For two ranks and three: shares of a few elements, of no whole number of pieces, and of whole pieces."""


@pytest.fixture(scope="module", params=(2, 3))
def ranks(request: pytest.FixtureRequest) -> Iterator[GlooRanks]:
    with GlooRanks(request.param) as group:
        yield group


def left_by(ranks: GlooRanks) -> list[Path]:
    """Files in shared memory that are named after the processes of the ranks."""
    return [path for pid in ranks.pids for path in Path("/dev/shm").glob(f"torch_{pid}_*")]


def in_order(size: int, ranks: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    terms = [scenarios.drawn(rank, size, dtype, seed).float() for rank in range(ranks)]
    return reduce(torch.add, terms).to(dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_every_rank_has_the_sum_in_the_order_of_ranks(ranks: GlooRanks, dtype: torch.dtype) -> None:
    sums = [torch.cat([in_order(size, ranks.size, dtype, seed) for size in SIZES]) for seed in (0, 1)]
    for of_rank in ranks(scenarios.summed_and_gathered, SIZES, dtype):
        for seed, ((scattered, by_gloo), (gathered, all_by_gloo)) in enumerate(
            zip(of_rank[::2], of_rank[1::2], strict=True)
        ):
            assert torch.equal(gathered, sums[seed])
            if ranks.size == 2:  # a sum of two terms has no order
                assert torch.equal(scattered, by_gloo) and torch.equal(gathered, all_by_gloo)
            else:
                rounding = 3 * torch.finfo(dtype).eps
                torch.testing.assert_close(gathered, all_by_gloo, rtol=rounding, atol=rounding * 4)


@pytest.mark.parametrize("free", (0, 10**9))
def test_ranks_agree_that_shared_memory_is_too_small(ranks: GlooRanks, free: int) -> None:
    for shared, warnings in ranks(scenarios.shares_with_free, free):
        assert shared is (free > 0)
        assert bool(warnings) is (free == 0)
        assert all("/dev/shm has" in warning for warning in warnings)


@pytest.mark.parametrize("fate", ("kill", "stop"))
def test_a_lost_rank_is_an_error_of_the_collective_within_its_deadline(fate: str) -> None:
    with GlooRanks(2, timeout_s=2.0) as ranks:
        ranks(scenarios.begin)
        getattr(ranks, fate)(1)
        began = time.monotonic()
        ranks.begin_on(0, scenarios.go_on)
        error = ranks.answer(0)
        assert time.monotonic() - began < 10.0
        assert is_of_collective(RuntimeError(error)), error
        assert fate == "kill" or "2000ms" in error
    assert not left_by(ranks)
