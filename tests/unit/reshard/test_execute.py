"""Tables carried out once, by whatever executor is the best here."""

import numpy as np
import torch

from hybridrl.reshard.checksum import MODULUS, checksum
from hybridrl.reshard.execute import copy, copy_and_sum
from hybridrl.reshard.table import Table


def table_of(boxes):
    return Table(["a"], [(0, 0, "b")], np.array([(0, 0, *box) for box in boxes], np.int64).reshape(-1, 8))


def test_vectors_are_one_row_and_leading_dimensions_are_rows():
    target = torch.zeros(2, 3, 4)
    copy(table_of([(0, 1, 4, 0, 1, 3)]), [torch.arange(5.0)], [target])
    assert target.view(6, 4)[4].tolist() == [1.0, 2.0, 3.0, 0.0] and target.sum() == 6


def test_the_checksum_is_of_what_was_sent():
    source, target = torch.randn(8, 8), torch.zeros(8, 8)
    parts = [(0, 0, 0, 0, 3, 8), (3, 0, 3, 0, 5, 5), (3, 5, 3, 5, 5, 3)]
    done = [copy_and_sum(table_of([part]), [source], [target]) for part in parts]
    assert sum(d.checksums[0, 0, "b"] for d in done) % MODULUS == checksum(target) == checksum(source)
    assert sum(d.bytes for d in done) == source.nbytes
    assert all(d.staging_bytes == 0 for d in done)
    target.view(torch.int32)[4, 4] ^= 1
    assert sum(d.checksums[0, 0, "b"] for d in done) % MODULUS != checksum(target)


def test_parameters_that_require_gradients_can_be_written_and_read():
    source, target = torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.zeros(4, 4))
    copy(table_of([(0, 0, 0, 0, 4, 4)]), [source], [target])
    assert torch.equal(source, target)


def test_a_table_without_boxes_writes_nothing():
    assert copy_and_sum(Table([], [], np.empty((0, 8), np.int64)), [], []).bytes == 0
