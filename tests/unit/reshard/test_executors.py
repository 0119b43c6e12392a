"""Every executor writes the bits and returns the checksums of the oracle, and refuses alike."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import box_tables
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrl.errors import ResourceError
from hybridrl.reshard import execute
from hybridrl.reshard.checksum import checksum
from hybridrl.reshard.executors import base, native, oracle, torch_copy
from hybridrl.reshard.table import Table

BUILT = pytest.mark.skipif(not native.is_built(), reason="there was no C compiler")
ON_CPU = [oracle, torch_copy, pytest.param(native, marks=BUILT)]
FAST = ON_CPU[1:]
SEEDS = st.integers(0, 1 << 20)


@pytest.mark.parametrize("executor", FAST)
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_boxes_land_where_the_oracle_puts_them_with_its_checksums(executor, seed):
    case = box_tables.strided(seed)
    assert box_tables.same(box_tables.outcome(executor, case), box_tables.outcome(oracle, case))


@BUILT
@given(SEEDS, st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_threads_change_nothing(seed, num_threads):
    case = box_tables.strided(seed, largest=120)
    threaded = box_tables.outcome(native, case, num_threads=num_threads)
    assert box_tables.same(threaded, box_tables.outcome(native, case))


@BUILT
@pytest.mark.parametrize("shape", [(3, 70_001), (700, 301), (1, 200_000)])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)])
def test_boxes_of_many_tiles_and_chunks_are_whole(shape, dtypes):
    source, target = torch.randn(shape).to(dtypes[0]), torch.zeros(shape, dtype=dtypes[1])
    table = box_tables.table_of([(0, 0, 0, 0, 0, 0, *shape)], [source], [target])
    for num_threads in (1, 3):
        target.zero_()
        done = native.prepare(table, [source], [target], num_threads=num_threads).write([source])
        assert torch.equal(target, source.to(dtypes[1]))
        assert done.checksums == {(0, 0, "t0"): checksum(target)} and done.staging_bytes == 0


@pytest.mark.parametrize("executor", ON_CPU)
@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_checksums_are_those_of_targets_that_are_written_in_full(executor, seed):
    table, sources, targets = box_tables.strided(seed, largest=12, skip=0)
    done = executor.prepare(table, sources, targets).write(sources)
    assert done.checksums == {(0, 0, f"t{i}"): checksum(t) for i, t in enumerate(targets)}
    assert done.bytes == sum(t.nbytes for t in targets)


PAIRS = [pair for pair in product(box_tables.FLOATS, repeat=2) if pair[0] != pair[1]]


def every_value(dtype):
    """All bits of a 16-bit dtype; of float32 what lies next to where 16 bits round, overflow and vanish."""
    if dtype != torch.float32:
        return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    high = torch.arange(1 << 16, dtype=torch.int64) << 16
    near = torch.tensor([0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (high[:, None] + near).flatten()
    return (bits - (bits >> 31 << 32)).to(torch.int32).view(dtype)


@pytest.mark.parametrize("executor", FAST)
@pytest.mark.parametrize("dtypes", PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_casts_round_every_value_as_torch_does(executor, dtypes):
    values = every_value(dtypes[0])
    target = torch.zeros(len(values), dtype=dtypes[1])
    table = box_tables.table_of([(0, 0, 0, 0, 0, 0, 1, len(values))], [values], [target])
    executor.prepare(table, [values], [target]).write([values])
    expected = values.to(dtypes[1])
    assert torch.equal(target.isnan(), values.isnan())
    finite = ~values.isnan()
    assert torch.equal(bits(target)[finite], bits(expected)[finite])


def bits(tensor):
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)


@pytest.mark.parametrize("executor", ON_CPU)
def test_sources_may_lie_elsewhere_at_each_write(executor):
    table, sources, targets = box_tables.strided(5, skip=0)
    prepared = executor.prepare(table, sources, targets)
    prepared.write(sources)
    saved = box_tables.memories(targets)
    moved = [torch.empty_strided(s.shape, s.stride(), dtype=s.dtype).copy_(s) for s in sources]
    for target in targets:
        target.copy_(torch.zeros_like(target))
    prepared.write(moved)
    assert all(map(torch.equal, box_tables.memories(targets), saved))


@pytest.mark.parametrize("executor", ON_CPU)
def test_a_table_is_prepared_before_its_sources_exist(executor):
    source, target = torch.randn(4, 4), torch.zeros(4, 4)
    table = box_tables.table_of([(0, 0, 0, 0, 0, 0, 4, 4)], [source], [target])
    prepared = executor.prepare(table, [torch.empty(4, 4, device="meta")], [target])
    prepared.write([source])
    assert torch.equal(source, target)


@pytest.mark.parametrize("executor", ON_CPU)
def test_no_sums_are_taken_where_none_are_wanted(executor):
    table, sources, targets = box_tables.strided(3, largest=8)
    done = executor.prepare(table, sources, targets).write(sources, sums=False)
    assert done.checksums == {} and done.bytes > 0


@pytest.mark.parametrize("executor", ON_CPU)
@pytest.mark.parametrize(
    "other", [torch.zeros(5, 4), torch.zeros(4, 5, dtype=torch.float16), torch.zeros(5, 4).T], ids=str
)
def test_other_sources_than_prepared_for_are_refused(executor, other):
    target = torch.zeros(4, 5)
    table = box_tables.table_of([(0, 0, 0, 0, 0, 0, 4, 5)], [target], [target])
    prepared = executor.prepare(table, [torch.ones(4, 5)], [target])
    with pytest.raises(ValueError, match="source s0 was prepared as"):
        prepared.write([other])
    with pytest.raises(ValueError, match="prepared for 1 sources"):
        prepared.write([])
    assert target.count_nonzero() == 0


REFUSED = {
    "leaves s0": (torch.ones(3, 4), torch.zeros(4, 4)),
    "leaves t0": (torch.ones(4, 4), torch.zeros(4, 3)),
    "no cast from torch.float64 to torch.float32": (torch.ones(4, 4).double(), torch.zeros(4, 4)),
    "no cast from torch.float32 to torch.float8_e4m3fn": (
        torch.ones(4, 4),
        torch.zeros(4, 4, dtype=torch.float8_e4m3fn),
    ),
    "not rows of neighbouring elements": (torch.ones(4, 8)[:, ::2], torch.zeros(4, 4)),
    r"t0 \(2, 2, 4\) with strides": (torch.ones(4, 4), torch.zeros(2, 3, 4)[:, :2]),
    "elements of 16 bytes": (torch.ones(4, 4, dtype=torch.complex128),) * 2,
}


@pytest.mark.parametrize("executor", ON_CPU)
@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_is_written(executor, message):
    source, target = REFUSED[message]
    table = box_tables.table_of([(0, 0, 0, 0, 0, 0, 4, 4)], [source], [target])
    with pytest.raises(ValueError, match=message):
        executor.prepare(table, [source], [target])


@pytest.mark.parametrize("box", [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_a_box_of_a_tensor_that_is_not_in_the_table_is_refused(box):
    table = Table(["a"], [(0, 0, "b")], np.array([(*box, 0, 0, 0, 0, 1, 1)]))
    with pytest.raises(ValueError, match="leaves tensor"):
        torch_copy.prepare(table, [torch.ones(1, 1)], [torch.zeros(1, 1)])


def test_a_table_with_other_tensors_is_refused():
    table = box_tables.table_of([], [1], [1])
    with pytest.raises(ValueError, match="1 sources and 1 targets, given are 0 and 1"):
        torch_copy.prepare(table, [], [torch.zeros(1)])


def test_an_executor_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ResourceError, match="native, oracle, torch_copy, triton"):
        base.find("rdma")


def test_without_the_built_library_torch_is_the_best_and_says_so_once(monkeypatch):
    monkeypatch.setattr(native, "is_built", lambda: False)
    execute._warn_not_built.cache_clear()
    with pytest.warns(RuntimeWarning, match="not built"):
        assert execute.best("cpu") is torch_copy
    assert execute.best("cpu") is torch_copy
    with pytest.raises(ResourceError, match="not built"):
        native.prepare(box_tables.table_of([], [], []), [], [])


def test_triton_says_that_it_needs_a_gpu():
    with pytest.raises(ResourceError, match="runs on a GPU"):
        base.find("triton").prepare(box_tables.table_of([], [], [1]), [], [torch.zeros(1)])


INTERPRETED = """
import box_tables
from hybridrl.reshard.executors import base, oracle

triton = base.find("triton")
cases = [box_tables.strided(seed) for seed in range(5)]
cases += [box_tables.strided(seed, largest=90) for seed in range(100, 101)]
cases += [box_tables.aligned(0), box_tables.between_codes(0)] + [box_tables.blocks(seed) for seed in range(2)]
for at, case in enumerate(cases):
    assert box_tables.same(box_tables.outcome(triton, case), box_tables.outcome(oracle, case)), at
print("equal")
"""


def test_the_triton_kernels_equal_the_oracle_in_the_interpreter():
    # Triton reads this variable when it is imported.
    path = os.pathsep.join([str(Path(box_tables.__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "equal\n", done.stderr[-3000:]
