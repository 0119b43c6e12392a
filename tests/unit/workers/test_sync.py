"""Checksums of the two sides of a swap: shares add up, and whatever differs is named."""

import pytest

from hybridrl.errors import SwapError
from hybridrl.reshard.swap import SwapWritten
from hybridrl.workers.sync import add_up, compare


def written(checksums) -> SwapWritten:
    return SwapWritten(len(checksums), 0, 0, checksums)


def test_shares_of_a_tensor_add_up_modulo_two_to_the_64() -> None:
    shares = [written({(0, 0, "a"): 2**64 - 1, (0, 0, "b"): 5}), written({(0, 0, "a"): 3})]
    assert add_up(shares) == {(0, 0, "a"): 2, (0, 0, "b"): 5}


def test_equal_sides_pass() -> None:
    compare({(0, 0, "a"): 1, (1, 0, "a"): 1}, {(1, 0, "a"): 1, (0, 0, "a"): 1})


def test_a_tensor_that_differs_is_named_with_its_engine_and_rank() -> None:
    with pytest.raises(SwapError, match=r"1 of 2 tensors differ.*engine 1, rank 0, b"):
        compare({(0, 0, "a"): 1, (1, 0, "b"): 1}, {(0, 0, "a"): 1, (1, 0, "b"): 2})


def test_a_tensor_that_nobody_wrote_is_an_error() -> None:
    with pytest.raises(SwapError, match=r"left out \[\(0, 0, 'b'\)\]"):
        compare({(0, 0, "a"): 1}, {(0, 0, "a"): 1, (0, 0, "b"): 2})
