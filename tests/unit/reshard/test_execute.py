"""Strided block copies against element-by-element copies."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shard_oracle import strided_copies

from hybridrl.reshard import execute
from hybridrl.reshard.checksum import MODULUS, checksum
from hybridrl.reshard.execute import Table, copy, copy_and_sum


def table_of(boxes):
    return Table(["a"], [(0, 0, "b")], np.array([(0, 0, *box) for box in boxes], np.int64).reshape(-1, 8))


BOX = st.tuples(*(st.integers(0, 6) for _ in range(4)), st.integers(1, 6), st.integers(1, 6))


@given(BOX)
def test_a_box_lands_where_the_oracle_puts_it(box):
    source = torch.arange(144.0).view(12, 12)
    expected = torch.zeros(12, 12)
    strided_copies(table_of([box]), [source.numpy()], [expected.numpy()])
    for run in (copy, copy_and_sum):
        target = torch.zeros(12, 12)
        run(table_of([box]), [source], [target])
        assert torch.equal(target, expected)


def test_vectors_are_one_row_and_leading_dimensions_are_rows():
    target = torch.zeros(2, 3, 4)
    copy(table_of([(0, 1, 4, 0, 1, 3)]), [torch.arange(5.0)], [target])
    assert target.view(6, 4)[4].tolist() == [1.0, 2.0, 3.0, 0.0] and target.sum() == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_rounds_as_torch_does_and_stages_a_bounded_part(monkeypatch, dtype):
    monkeypatch.setattr(execute, "_STAGING_BYTES", 1024)
    source = torch.randn(300, 40)
    target = torch.zeros(300, 40, dtype=dtype)
    done = copy_and_sum(table_of([(0, 0, 0, 0, 300, 40)]), [source], [target])
    assert torch.equal(target, source.to(dtype))
    assert 0 < done.staging_bytes <= 1024
    assert done.checksums == {(0, 0, "b"): checksum(target)}


def test_the_checksum_is_of_what_was_sent():
    source, target = torch.randn(8, 8), torch.zeros(8, 8)
    parts = [(0, 0, 0, 0, 3, 8), (3, 0, 3, 0, 5, 5), (3, 5, 3, 5, 5, 3)]
    done = [copy_and_sum(table_of([part]), [source], [target]) for part in parts]
    assert sum(d.checksums[0, 0, "b"] for d in done) % MODULUS == checksum(target) == checksum(source)
    assert sum(d.bytes for d in done) == source.nbytes
    assert all(d.staging_bytes == 0 for d in done)
    target[4, 4] += 1e-7
    assert sum(d.checksums[0, 0, "b"] for d in done) % MODULUS != checksum(target)


def test_parameters_that_require_gradients_can_be_written_and_read():
    source, target = torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.zeros(4, 4))
    copy(table_of([(0, 0, 0, 0, 4, 4)]), [source], [target])
    assert torch.equal(source, target)
