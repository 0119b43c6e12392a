"""The checksum against its formula, and what it must notice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridrl.layout.runs import Run
from hybridrl.layout.shard import Shard
from hybridrl.reshard import checksum as module
from hybridrl.reshard.checksum import MODULUS, box_checksum, checksum

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8]


def values(rows, cols, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(rows, cols, generator=generator, dtype=torch.float64).to(dtype)
    return torch.randint(0, 255, (rows, cols), generator=generator).to(dtype)


def by_formula(matrix):
    size = matrix.element_size()
    per_word = 8 // size
    row_factors, col_factors = (
        [int(f) for f in module._factors(seed, 4096)] for seed in (module._ROW_SEED, module._COL_SEED)
    )
    raw = matrix.contiguous().view(torch.uint8).flatten().tolist()
    total = 0
    for r in range(matrix.shape[0]):
        for c in range(matrix.shape[1]):
            at = (r * matrix.shape[1] + c) * size
            bits = int.from_bytes(bytes(raw[at : at + size]), "little")
            total += row_factors[r] * col_factors[c // per_word] * (bits << (64 // per_word) * (c % per_word))
    return total % MODULUS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 8), (5, 7), (1, 13), (9, 1), (2, 1100)])
def test_is_its_formula(dtype, rows, cols):
    matrix = values(rows, cols, dtype)
    assert checksum(matrix) == by_formula(matrix)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_sums_as_numpy_does(dtype, monkeypatch):
    monkeypatch.setattr(module, "_DEVICE_WORDS", 512)  # several parts
    matrix = values(7, 1600, dtype)
    words = 1600 * matrix.element_size() // 8
    found = module.weighted_sum_by_torch(
        matrix.view(module._INTEGER[matrix.element_size()]),
        module.row_factors(7)[:7],
        module.col_factors(words)[:words],
    )
    assert found == checksum(matrix)


@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_boxes_in_any_order_add_up_to_the_whole(dtype, row_parts, col_parts):
    matrix = values(sum(row_parts), sum(col_parts), dtype)
    total, row = 0, 0
    for rows in row_parts:
        col = 0
        for cols in col_parts:
            total += box_checksum(matrix[row : row + rows, col : col + cols], (row, col))
            col += cols
        row += rows
    assert total % MODULUS == checksum(matrix)


def test_boxes_of_a_shard_leave_out_its_padding():
    shard = Shard("embed", (6, 5), (Run(0, 2, 0), Run(2, 2, 2)), (Run(0, 5, 0),))
    padded = values(6, 5, torch.float32)
    clean = padded.clone()
    clean[4:] = 0
    assert checksum(padded, shard.boxes()) == checksum(clean) != checksum(padded)


def test_boxes_of_a_vector_lie_in_its_one_row():
    shard = Shard("bias", (6,), (Run(3, 4, 1),), (Run(0, 1, 0),))
    vector = torch.tensor([9.0, 1.0, 2.0, 3.0, 4.0, 9.0])
    clean = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 0.0])
    assert checksum(vector, shard.boxes()) == checksum(clean)


def test_padding_rows_of_zeros_do_not_matter():
    matrix = values(5, 6, torch.bfloat16)
    assert checksum(matrix) == checksum(torch.cat([matrix, torch.zeros(3, 6, dtype=torch.bfloat16)]))


def test_leading_dimensions_count_as_rows():
    cube = values(6, 4, torch.float32).view(2, 3, 4)
    assert checksum(cube) == checksum(cube.view(6, 4))


def test_memory_that_does_not_begin_at_a_word_gives_the_same_number():
    matrix = values(4, 9, torch.bfloat16)
    assert checksum(matrix[:, 1:]) == checksum(matrix[:, 1:].contiguous())
    flat = values(1, 41, torch.float32)[0]
    assert checksum(flat[1:].view(4, 10)) == checksum(flat[1:].clone().view(4, 10))


def test_large_unaligned_boxes_are_staged_in_parts(monkeypatch):
    matrix = values(40, 7, torch.float32)
    whole = checksum(matrix)
    monkeypatch.setattr(module, "_STAGING_BYTES", 100)
    assert checksum(matrix) == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bit", [0, 7, 15])
@pytest.mark.parametrize("col", [0, 1, 2, 3])
def test_one_flipped_bit_always_shows(dtype, bit, col):
    matrix = values(3, 8, dtype)
    damaged = matrix.clone()
    raw = damaged.view(torch.int16)
    raw[1, col] ^= torch.tensor(1 << bit if bit < 15 else -(1 << 15), dtype=torch.int16)
    assert checksum(damaged) != checksum(matrix)


def test_elements_that_trade_places_show():
    matrix = values(16, 16, torch.bfloat16)
    for other in (
        matrix.flip(0),
        matrix.flip(1),
        matrix.roll(1, 0),
        matrix.roll(4, 1),
        matrix.T.contiguous(),
    ):
        assert checksum(other) != checksum(matrix)


def test_a_negative_zero_is_not_a_zero():
    assert checksum(torch.tensor([-0.0])) != checksum(torch.tensor([0.0])) == 0


def test_is_the_same_number_on_every_machine():
    """It is compared between processes, so it may not depend on a seed or a version."""
    assert checksum(torch.arange(12, dtype=torch.float32).view(3, 4) / 3) == 4533736360687689334
