"""Block-FP8 targets: bit-equal to the engine's quantiser on the gathered tensor, for every sharding."""

import box_tables
import pytest
import torch
from fp8_values import engine_quantiser
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrl.reshard import descriptors
from hybridrl.reshard.block_fp8 import BlockFP8
from hybridrl.reshard.checksum import checksum
from hybridrl.reshard.executors import native, oracle, torch_copy
from hybridrl.reshard.kernels.reference import quantise

BUILT = pytest.mark.skipif(not native.is_built(), reason="there was no C compiler")
FAST = [torch_copy, pytest.param(native, marks=BUILT)]


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(128, 256), (300, 200), (1, 1)])
def test_the_reference_is_the_engines_quantiser(power_of_two, dtype, shape):
    size = torch.randint(-40, 20, shape).float().exp2()
    weight = (torch.randn(shape) * size).to(dtype)
    weight[:100, :100] *= 1e-9  # where the scale has its floor
    values, scales = quantise(weight, power_of_two=power_of_two)
    expected = engine_quantiser(power_of_two)(weight)
    assert torch.equal(values.view(torch.uint8), expected[0].view(torch.uint8))
    assert torch.equal(scales, expected[1])


def gathered(case):
    """The weight that the boxes make up, in float32."""
    table, sources, (target, _) = case
    weight = torch.zeros(target.values.shape).flatten(0, -2)
    for source, to, row, col, to_row, to_col, rows, cols in table.boxes.tolist():
        if to == 0:
            part = sources[source][row : row + rows, col : col + cols]
            weight[to_row : to_row + rows, to_col : to_col + cols] = part
    return weight.view(target.values.shape)


@pytest.mark.parametrize("executor", FAST)
@given(seed=st.integers(0, 1 << 20))
@settings(max_examples=40, deadline=None)
def test_blocks_are_those_of_the_gathered_weight_wherever_shards_are_cut(executor, seed):
    case = table, sources, targets = box_tables.blocks(seed)
    target, other = targets
    done = executor.prepare(table, sources, targets).write(sources)
    experts = gathered(case).view(-1, *target.values.shape[-2:])
    for values, scales, weight in zip(
        target.values.view(experts.shape), target.scales.view(-1, *target.scales.shape[-2:]), experts
    ):
        expected = quantise(weight, power_of_two=target.power_of_two)
        assert torch.equal(values.view(torch.uint8), expected[0].view(torch.uint8))
        assert torch.equal(scales.T if target.transposed else scales, expected[1])
    name = (0, 0, "t0")
    assert done.checksums == {name: checksum(target.values), (0, 0, "t1"): checksum(other)}
    assert done.scale_checksums == {name: checksum(target.scales)}
    assert done.bytes == target.values.nbytes + target.scales.nbytes + other.nbytes


@pytest.mark.parametrize("executor", FAST)
@pytest.mark.parametrize("seed", range(3))
def test_executors_equal_the_oracle(executor, seed):
    case = box_tables.blocks(seed)
    assert box_tables.same(box_tables.outcome(executor, case), box_tables.outcome(oracle, case))


@pytest.mark.parametrize("executor", [oracle, *FAST])
@pytest.mark.parametrize("seed", range(4))
def test_values_next_to_where_rounding_turns_are_those_of_the_reference(executor, seed):
    table, (source,), (target,) = box_tables.between_codes(seed)
    executor.prepare(table, [source], [target]).write([source])
    values, scales = quantise(source)
    assert torch.equal(target.values.view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(target.scales, scales)


@pytest.mark.parametrize("executor", FAST)
def test_staging_is_bounded_and_none_is_used_where_shards_are_cut_between_blocks(executor, monkeypatch):
    monkeypatch.setattr(descriptors, "STAGED_BLOCKS", 2)
    source, target = torch.randn(700, 300), box_tables.empty_fp8([], [700, 300])
    inside = [(0, 0, at, 0, at, 0, 100, 300) for at in range(0, 700, 100)]
    table = box_tables.table_of(inside, [source], [target])
    done = executor.prepare(table, [source], [target]).write([source])
    assert 0 < done.staging_bytes <= 2 * 128 * 128 * 4
    assert torch.equal(target.scales, quantise(source)[1])
    if executor is native:
        between = [(0, 0, 0, 0, 0, 0, 256, 300), (0, 0, 256, 0, 256, 0, 444, 300)]
        table = box_tables.table_of(between, [source], [target])
        assert native.prepare(table, [source], [target]).write([source]).staging_bytes == 0


@pytest.mark.parametrize("executor", [oracle, *FAST])
def test_a_part_of_a_block_is_refused(executor):
    source, target = torch.randn(128, 100), box_tables.empty_fp8([], [128, 128])
    table = box_tables.table_of([(0, 0, 0, 0, 0, 0, 128, 100)], [source], [target])
    with pytest.raises(ValueError, match="only 12800 of the 16384 values of the block at row 0, column 0"):
        executor.prepare(table, [source], [target])


@pytest.mark.parametrize("executor", [oracle, *FAST])
def test_integers_are_not_quantised(executor):
    source, target = torch.ones(128, 128, dtype=torch.int32), box_tables.empty_fp8([], [128, 128])
    table = box_tables.table_of([(0, 0, 0, 0, 0, 0, 128, 128)], [source], [target])
    with pytest.raises(ValueError, match="not from torch.int32"):
        executor.prepare(table, [source], [target])


def test_scales_that_do_not_fit_are_refused():
    values = torch.zeros(300, 128, dtype=torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"are \(3, 1\), not \(1, 3\)"):
        BlockFP8(values, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="float32"):
        BlockFP8(values, torch.zeros(3, 1).half())
    with pytest.raises(ValueError, match="matrices"):
        BlockFP8(values[0], torch.zeros(1))
    BlockFP8(values, torch.zeros(1, 3), transposed=True)


@pytest.mark.parametrize("executor", FAST)
def test_damage_shows_in_the_checksum_of_values_or_scales(executor):
    table, sources, targets = box_tables.blocks(1, aligned=True)
    done = executor.prepare(table, sources, targets).write(sources)
    target = targets[0]
    target.values.view(torch.uint8).flatten()[77] ^= 1
    assert done.checksums[0, 0, "t0"] != checksum(target.values)
    target.scales.view(torch.int32).flatten()[0] ^= 1
    assert done.scale_checksums[0, 0, "t0"] != checksum(target.scales)
