"""The engine's choice of experts on its way in token blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridrl.batch import TokenBlock

LAYERS, CHOSEN = 3, 2


def block_of(lengths: list[int], num_experts: int, seed: int) -> tuple[TokenBlock, list[np.ndarray]]:
    draw = np.random.default_rng(seed)
    experts = [draw.integers(0, num_experts, (length, LAYERS, CHOSEN)) for length in lengths]
    responses = [[1] * length for length in lengths]
    logps = [[-1.0] * length for length in lengths]
    return TokenBlock.from_answers([[0]] * len(lengths), responses, logps, 0, experts=experts), experts


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    st.sampled_from([4, 255, 256, 300]),
    st.integers(0, 99),
)
def test_each_token_keeps_its_experts_and_the_last_has_none(
    lengths: list[int], num_experts: int, seed: int
) -> None:
    block, experts = block_of(lengths, num_experts, seed)
    found = block.columns["experts"]
    assert found.dtype in (np.uint8, np.uint16)
    assert len(found) == len(block.token_T)
    for row, given_experts in enumerate(experts):
        np.testing.assert_array_equal(found[block.row(row)][:-1], given_experts)
        assert (found[block.row(row)][-1] == np.iinfo(found.dtype).max).all()


def test_experts_of_another_number_of_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="experts of 2 tokens for a trajectory of 2"):
        TokenBlock.from_answers([[0]], [[1]], [[-1.0]], 0, experts=[np.zeros((2, LAYERS, CHOSEN), int)])


def test_without_experts_nothing_is_carried() -> None:
    block = TokenBlock.from_answers([[0]], [[1]], [[-1.0]], 0)
    assert "experts" not in block.columns
