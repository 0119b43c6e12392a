"""Which boxes are sent from their source and received into their target, without a buffer."""

import numpy as np
import pytest
import torch

from hybridrl.reshard import direct
from hybridrl.reshard.rounds import Bounds, Side, rounds
from hybridrl.reshard.table import Table

BF16, F32 = torch.bfloat16, torch.float32
LARGE = (1024, 1024)
"""Shape of a box that has a message of its own in bf16."""


def loads(box, dtype=BF16):
    """What the two ranks have in their buffers for one box: (outgoing, incoming)."""
    side = Side(Table(["x"], [(0, 1, "y")], np.array([(0, 0, *box)], np.int64)), (dtype,))
    bounds = Bounds.of(512 << 20)
    (sent,) = rounds(0, 2, {1: side}, {}, bounds, alone=True)
    (received,) = rounds(1, 2, {}, {0: side}, bounds, alone=True)
    return sent.outgoing, received.incoming


def test_rows_of_both_sides_need_no_buffer():
    source, target = torch.randn(2048, 1024).to(BF16), torch.zeros(1500, 1024, dtype=BF16)
    outgoing, incoming = loads((7, 0, 300, 0, *LARGE))
    (place,) = direct.places(outgoing, [source], of_targets=False).values()
    (into,) = direct.places(incoming, [target], of_targets=True).values()
    assert place.view(source).data_ptr() == source[7].data_ptr()
    into.view(target).copy_(place.view(source))
    assert torch.equal(target[300:1324], source[7:1031])
    assert not target[:300].any() and not target[1324:].any()
    assert not len(direct.staged(outgoing, {0: place}).boxes)
    assert outgoing.spans[0].stop - outgoing.spans[0].start == 2 << 20


@pytest.mark.parametrize(
    ("tensor", "box"),
    [
        (torch.zeros(2048, 1024, dtype=F32), (0, 0, 0, 0, *LARGE)),
        (torch.zeros(1024, 2048, dtype=BF16), (0, 0, 0, 0, *LARGE)),
        (torch.zeros(1024, 1024, dtype=BF16).t(), (0, 0, 0, 0, *LARGE)),
        (torch.zeros(1024, 2048, dtype=BF16)[:, ::2], (0, 0, 0, 0, *LARGE)),
        (torch.zeros(1000, 1024, dtype=BF16), (0, 0, 0, 0, *LARGE)),
    ],
    ids=["another dtype", "part of the columns", "transposed", "every other column", "too small"],
)
def test_all_else_is_staged(tensor, box):
    outgoing, incoming = loads(box)
    assert direct.places(outgoing, [tensor], of_targets=False) == {}
    assert direct.places(incoming, [tensor], of_targets=True) == {}
    assert len(direct.staged(outgoing, {}).boxes) == 1


def test_a_part_of_one_row_and_a_vector_need_no_buffer():
    outgoing, _ = loads((1, 3, 0, 0, 1, 1 << 20))
    matrix, vector = torch.randn(2, (1 << 20) + 8).to(BF16), torch.randn((1 << 20) + 8).to(BF16)
    (place,) = direct.places(outgoing, [matrix], of_targets=False).values()
    assert torch.equal(place.box(matrix)[0], matrix[1, 3 : 3 + (1 << 20)])
    outgoing, _ = loads((0, 8, 0, 0, 1, 1 << 20))
    (place,) = direct.places(outgoing, [vector], of_targets=False).values()
    assert torch.equal(place.box(vector)[0], vector[8:])


def test_small_boxes_and_fp8_share_messages():
    outgoing, _ = loads((0, 0, 0, 0, 1024, 511))
    assert outgoing.alone == {}
    name, scales = (0, 1, "y"), (0, 1, "y_scale_inv")
    table = Table(["x"], [name], np.array([(0, 0, 0, 0, 0, 0, 2048, 1024)], np.int64))
    side = Side(table, (torch.float8_e4m3fn,), {0: scales})
    (round_,) = rounds(0, 2, {1: side}, {}, Bounds.of(512 << 20), alone=True)
    assert round_.outgoing.alone == {}
