"""Runs descriptor tables in Triton: `move` copies and casts the boxes of a phase, `quantise` its FP8 blocks.

A program processes a tile: one FP8 block, or 4096 units of a flattened box, which are 64 KB if addresses
allow units of 16 bytes. Bases are looked up in tensors of addresses. Checksums follow
hybridrl/reshard/checksum.py. bfloat16 is rounded by integer arithmetic, which is the same on a GPU and in
Triton's interpreter.

Shape letters: U units, E elements of a unit, R x C an FP8 block, W words of a row.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridrl.reshard import descriptors
from hybridrl.reshard.kernels import reference

TILE_UNITS = 4096
CAST_UNIT = 8
"""Elements per unit of a wide cast, which needs addresses and lengths that are multiples of it."""

CAST_FORM = 16
"""Form of a tile: log2 of a copy's unit; for a cast, CAST_FORM + 2 * (its code - CAST), + 1 if wide."""

INTERPRETED = triton.knobs.runtime.interpret

_LANES = tl.constexpr(512)
_STEPS = tl.constexpr(TILE_UNITS // 512)
_COLUMNS = tl.constexpr(descriptors.NUM_COLUMNS)
_CAST = tl.constexpr(descriptors.CAST)
_CAST_FORM = tl.constexpr(CAST_FORM)
_CAST_UNIT = tl.constexpr(CAST_UNIT)
_POWER_OF_TWO = tl.constexpr(descriptors.POWER_OF_TWO)
_TRANSPOSED = tl.constexpr(descriptors.TRANSPOSED)
_BLOCK = tl.constexpr(reference.BLOCK)
_LARGEST = tl.constexpr(reference.LARGEST)
_SMALLEST_AMAX = tl.constexpr(reference.SMALLEST_AMAX)


def move(
    boxes: Tensor,
    tiles: Tensor,
    bases: tuple[Tensor, Tensor],
    factors: tuple[Tensor, Tensor],
    sums: Tensor | None,
) -> None:
    """Copy and cast the boxes of a phase in one launch.

    Args:
        boxes: int64 [n, 15], with the columns of descriptors.py.
        tiles: int64 [t, 3]: box, first unit, form.
        bases: addresses of the sources and of the targets, int64.
        factors: checksum factors of rows and of words, int64.
        sums: int64, one per target base, to which checksums are added; None: nothing is summed.
    """
    _launch(_move, boxes, tiles, (*bases, *factors), sums, num_warps=4)


def quantise(
    boxes: Tensor,
    tiles: Tensor,
    bases: tuple[Tensor, Tensor],
    factors: tuple[Tensor, Tensor],
    sums: Tensor | None,
) -> None:
    """Quantise the FP8 blocks of a phase in one launch.

    Args:
        tiles: int64 [t, 3]: box, number of the block in it, 1 if it may be read in units of CAST_UNIT. All
            other arguments are as in `move`.
    """
    rounds = _rounds_fp8(boxes.device)
    # Fused multiply-add would differ from the reference.
    options = {"num_warps": 8, "enable_fp_fusion": False}
    _launch(_quantise, boxes, tiles, (*bases, *factors), sums, ROUNDS_FP8=rounds, **options)


def _launch(
    kernel: Any,
    boxes: Tensor,
    tiles: Tensor,
    lookups: tuple[Tensor, ...],
    sums: Tensor | None,
    **options: Any,
) -> None:
    if len(tiles):
        held = boxes if sums is None else sums  # With SUM = False nothing is added to `boxes`.
        kernel[(len(tiles),)](boxes, tiles, *lookups, held, SUM=sums is not None, **options)


def _rounds_fp8(device: torch.device) -> bool:
    """Whether the device has an instruction that rounds to FP8, as Ada, Hopper and later ones do."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


@triton.jit
def _move(boxes, tiles, sources, targets, row_factors, col_factors, sums, SUM: tl.constexpr):
    tile = tiles + 3 * tl.program_id(0).to(tl.int64)
    box = boxes + _COLUMNS * tl.load(tile)
    first = tl.load(tile + 1)
    form = tl.load(tile + 2)
    source = tl.load(sources + tl.load(box)) + tl.load(box + 2)
    target = tl.load(targets + tl.load(box + 1)) + tl.load(box + 3)
    total = tl.zeros([], tl.int64)
    if form == 4:
        total = _copy(box, first, source, target, row_factors, col_factors, tl.int64, 2, SUM)
    elif form == 3:
        total = _copy(box, first, source, target, row_factors, col_factors, tl.int64, 1, SUM)
    elif form == 2:
        total = _copy(box, first, source, target, row_factors, col_factors, tl.uint32, 1, SUM)
    elif form == 1:
        total = _copy(box, first, source, target, row_factors, col_factors, tl.uint16, 1, SUM)
    elif form == 0:
        total = _copy(box, first, source, target, row_factors, col_factors, tl.uint8, 1, SUM)
    else:
        for cast in tl.static_range(12):
            if cast // 4 != cast % 4 and cast % 4 != 3:
                if form == _CAST_FORM + 2 * cast:
                    total = _cast(box, first, source, target, row_factors, col_factors, cast, 1, SUM)
                elif form == _CAST_FORM + 2 * cast + 1:
                    total = _cast(box, first, source, target, row_factors, col_factors, cast, _CAST_UNIT, SUM)
    if SUM:
        tl.atomic_add(sums + tl.load(box + 1), total)


@triton.jit
def _place(first, step, row_units, rows):
    """(row_U, unit in the row_U, is inside_U). Only the division of the tile's first unit needs 64 bits."""
    unit_U = (first % row_units + step * _LANES).to(tl.int32) + tl.arange(0, _LANES)
    row_U = first // row_units + unit_U // row_units.to(tl.int32)
    return row_U, (unit_U % row_units.to(tl.int32)).to(tl.int64), row_U < rows


@triton.jit
def _copy(
    box,
    first,
    source,
    target,
    row_factors,
    col_factors,
    WORD: tl.constexpr,
    WORDS: tl.constexpr,
    SUM: tl.constexpr,
):
    """Copy units of `WORDS` words; returns what they add to the checksum."""
    SIZE: tl.constexpr = WORD.primitive_bitwidth // 8
    UNIT: tl.constexpr = SIZE * WORDS
    element_size = tl.full([], 1, tl.int64) << tl.load(box + 8)
    row_units = tl.load(box + 7) * element_size // UNIT
    word_E = tl.arange(0, WORDS)
    total_UE = tl.zeros([_LANES, WORDS], tl.int64)
    for step in range(_STEPS):
        row_U, unit_U, inside_U = _place(first, step, row_units, tl.load(box + 6))
        byte_U = unit_U * UNIT
        mask_UE = inside_U[:, None]
        from_U = source + row_U * tl.load(box + 4) + byte_U
        to_U = target + row_U * tl.load(box + 5) + byte_U
        from_UE = from_U[:, None].to(tl.pointer_type(WORD)) + word_E[None, :]
        to_UE = to_U[:, None].to(tl.pointer_type(WORD)) + word_E[None, :]
        # The compiler cannot infer that units may be read and written as vectors.
        from_UE = tl.max_contiguous(tl.multiple_of(from_UE, [UNIT, UNIT]), [1, WORDS])
        to_UE = tl.max_contiguous(tl.multiple_of(to_UE, [UNIT, UNIT]), [1, WORDS])
        value_UE = tl.load(from_UE, mask=mask_UE, other=0)
        tl.store(to_UE, value_UE, mask=mask_UE)
        if SUM:
            at_UE = tl.load(box + 10) * element_size + byte_U[:, None] + SIZE * word_E[None, :]
            bits_UE = value_UE.to(tl.int64) << (at_UE % 8 * 8)
            of_row_U = tl.load(row_factors + tl.load(box + 9) + row_U, mask=inside_U, other=0)
            of_word_UE = tl.load(col_factors + at_UE // 8, mask=mask_UE, other=0)
            total_UE += bits_UE * of_word_UE * of_row_U[:, None]
    return tl.sum(tl.sum(total_UE, 1), 0)


@triton.jit
def _cast(
    box,
    first,
    source,
    target,
    row_factors,
    col_factors,
    CAST: tl.constexpr,
    UNIT: tl.constexpr,
    SUM: tl.constexpr,
):
    """Cast units of `UNIT` elements; returns what they add to the checksum."""
    SOURCE: tl.constexpr = CAST // 4
    TARGET: tl.constexpr = CAST % 4
    FROM_SIZE: tl.constexpr = 4 if SOURCE == 0 else 2
    TO_SIZE: tl.constexpr = 4 if TARGET == 0 else 2
    PER_WORD: tl.constexpr = 8 // TO_SIZE
    TO: tl.constexpr = tl.uint32 if TARGET == 0 else tl.uint16
    element_E = tl.arange(0, UNIT)
    total = tl.zeros([], tl.int64)
    for step in range(_STEPS):
        row_U, unit_U, inside_U = _place(first, step, tl.load(box + 7) // UNIT, tl.load(box + 6))
        mask_UE = inside_U[:, None]
        from_U = source + row_U * tl.load(box + 4) + unit_U * (UNIT * FROM_SIZE)
        to_U = target + row_U * tl.load(box + 5) + unit_U * (UNIT * TO_SIZE)
        value_UE = _load_float32(from_U[:, None], element_E[None, :], mask_UE, SOURCE, UNIT)
        bits_UE = _bits(value_UE, TARGET)
        to_UE = to_U[:, None].to(tl.pointer_type(TO)) + element_E[None, :]
        to_UE = tl.max_contiguous(tl.multiple_of(to_UE, [UNIT * 2, UNIT * 2]), [1, UNIT])
        tl.store(to_UE, bits_UE, mask=mask_UE)
        if SUM:
            at_UE = tl.load(box + 10) + (unit_U * UNIT)[:, None] + element_E[None, :]
            word_UE = tl.where(mask_UE, bits_UE.to(tl.int64), 0) << (at_UE % PER_WORD * (8 * TO_SIZE))
            of_row_U = tl.load(row_factors + tl.load(box + 9) + row_U, mask=inside_U, other=0)
            if UNIT > 1:
                word_UW = tl.sum(tl.reshape(word_UE, [_LANES, UNIT // PER_WORD, PER_WORD]), 2)
                at_U = (tl.load(box + 10) + unit_U * UNIT) // PER_WORD
                at_UW = at_U[:, None] + tl.arange(0, UNIT // PER_WORD)[None, :]
                of_word_UW = tl.load(col_factors + at_UW, mask=inside_U[:, None], other=0)
                total += tl.sum(tl.sum(word_UW * of_word_UW, 1) * of_row_U, 0)
            else:
                of_word_UE = tl.load(col_factors + at_UE // PER_WORD, mask=mask_UE, other=0)
                total += tl.sum(tl.sum(word_UE * of_word_UE, 1) * of_row_U, 0)
    return total


@triton.jit
def _load_float32(address, element, mask, SOURCE: tl.constexpr, UNIT: tl.constexpr):
    """Load values of dtype descriptors.FLOATS[SOURCE] as float32; `UNIT` neighbours are aligned."""
    if SOURCE == 0:
        place = address.to(tl.pointer_type(tl.float32)) + element
        place = tl.max_contiguous(tl.multiple_of(place, [2 * UNIT, 2 * UNIT]), [1, UNIT])
        value = tl.load(place, mask=mask, other=0.0)
    elif SOURCE == 1:
        place = address.to(tl.pointer_type(tl.uint16)) + element
        place = tl.max_contiguous(tl.multiple_of(place, [2 * UNIT, 2 * UNIT]), [1, UNIT])
        value = (tl.load(place, mask=mask, other=0).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        place = address.to(tl.pointer_type(tl.float16)) + element
        place = tl.max_contiguous(tl.multiple_of(place, [2 * UNIT, 2 * UNIT]), [1, UNIT])
        value = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _bits(value, TARGET: tl.constexpr):
    """Bits of float32 values in dtype descriptors.FLOATS[TARGET], rounded to nearest even."""
    wide = value.to(tl.uint32, bitcast=True)
    if TARGET == 0:
        bits = wide
    elif TARGET == 1:
        rounded = (wide + 0x7FFF + ((wide >> 16) & 1)) >> 16
        bits = tl.where((wide & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded).to(tl.uint16)
    else:
        bits = value.to(tl.float16).to(tl.uint16, bitcast=True)
    return bits


@triton.jit
def _quantise(
    boxes,
    tiles,
    sources,
    targets,
    row_factors,
    col_factors,
    sums,
    SUM: tl.constexpr,
    ROUNDS_FP8: tl.constexpr,
):
    tile = tiles + 3 * tl.program_id(0).to(tl.int64)
    box = boxes + _COLUMNS * tl.load(tile)
    blocks_across = tl.cdiv(tl.load(box + 7), _BLOCK)
    block_row = tl.load(tile + 1) // blocks_across
    block_col = tl.load(tile + 1) % blocks_across
    wide = tl.load(tile + 2)
    op = tl.load(box + 8)
    row_R = block_row * _BLOCK + tl.arange(0, _BLOCK)
    col_C = block_col * _BLOCK + tl.arange(0, _BLOCK)
    mask_RC = (row_R < tl.load(box + 6))[:, None] & (col_C < tl.load(box + 7))[None, :]
    from_R = tl.load(sources + tl.load(box)) + tl.load(box + 2) + row_R * tl.load(box + 4)
    weight_RC = tl.zeros([_BLOCK, _BLOCK], tl.float32)
    for dtype in tl.static_range(3):
        if op & 3 == dtype:
            if wide != 0:
                all_RC = tl.max_constancy(mask_RC, [1, _CAST_UNIT])
                weight_RC = _load_float32(from_R[:, None], col_C[None, :], all_RC, dtype, _CAST_UNIT)
            else:
                weight_RC = _load_float32(from_R[:, None], col_C[None, :], mask_RC, dtype, 1)
    # Without the sign, bits have the order of the values, with infinity and then NaN on top.
    size_RC = weight_RC.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    amax = tl.max(tl.max(size_RC, 1), 0).to(tl.float32, bitcast=True)
    amax = tl.where(amax < _SMALLEST_AMAX, _SMALLEST_AMAX, amax)
    scale, factor = _scale(amax, op & _POWER_OF_TWO)
    _store_scale(
        box, block_row, block_col, scale, op & _TRANSPOSED, targets, row_factors, col_factors, sums, SUM
    )
    value_RC = weight_RC * factor
    if ROUNDS_FP8:
        eight_RC = value_RC.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        eight_RC = _float8(value_RC)
    to_R = tl.load(targets + tl.load(box + 1)) + tl.load(box + 3) + row_R * tl.load(box + 5)
    to_RC = to_R[:, None].to(tl.pointer_type(tl.uint8)) + col_C[None, :]
    if wide != 0:
        to_RC = tl.max_contiguous(tl.multiple_of(to_RC, [_CAST_UNIT, _CAST_UNIT]), [1, _CAST_UNIT])
        tl.store(to_RC, eight_RC, mask=tl.max_constancy(mask_RC, [1, _CAST_UNIT]))
    else:
        tl.store(to_RC, eight_RC, mask=mask_RC)
    if SUM:
        total = _sum_of_eights(
            box, tl.where(mask_RC, eight_RC, 0), row_R, block_col, row_factors, col_factors
        )
        tl.atomic_add(sums + tl.load(box + 1), total)


@triton.jit
def _scale(amax, power_of_two):
    """(scale, factor) as in reference.py."""
    scale = tl.div_rn(amax, tl.full([], _LARGEST, tl.float32))
    one = tl.full([], 1.0, tl.float32)
    if power_of_two:
        bits = scale.to(tl.int32, bitcast=True)
        exponent = ((bits >> 23) & 0xFF) + ((bits & 0x7FFFFF) != 0).to(tl.int32)
        scale = (tl.minimum(tl.maximum(exponent, 1), 254) << 23).to(tl.float32, bitcast=True)
        factor = tl.div_rn(one, scale)
    else:
        factor = tl.div_rn(one, amax) * _LARGEST
    return scale, factor


@triton.jit
def _store_scale(
    box, block_row, block_col, scale, transposed, targets, row_factors, col_factors, sums, SUM: tl.constexpr
):
    row = tl.load(box + 13) + tl.where(transposed != 0, block_col, block_row)
    col = tl.load(box + 14) + tl.where(transposed != 0, block_row, block_col)
    to = tl.load(targets + tl.load(box + 11)) + row * tl.load(box + 12) + 4 * col
    tl.store(to.to(tl.pointer_type(tl.float32)), scale)
    if SUM:
        word = scale.to(tl.uint32, bitcast=True).to(tl.int64) << (col % 2 * 32)
        tl.atomic_add(
            sums + tl.load(box + 11), word * tl.load(row_factors + row) * tl.load(col_factors + col // 2)
        )


@triton.jit
def _float8(value):
    """Bits of a value in float8_e4m3fn, computed as float8_of in native.c does."""
    bits = value.to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    normal = (size + 0x7FFFF + ((size >> 20) & 1) - (120 << 23)) >> 20
    least = tl.full([], 141 << 23, tl.uint32)
    shifted = size.to(tl.float32, bitcast=True) + least.to(tl.float32, bitcast=True)
    code = tl.where(size < (121 << 23), shifted.to(tl.uint32, bitcast=True) - least, normal)
    code = tl.where(size > 0x7F800000, 0x7F, tl.minimum(code, 0x7E))
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _sum_of_eights(box, eight_RC, row_R, block_col, row_factors, col_factors):
    """Checksum of FP8 values. A word has eight; four at a time in 32 bits is half the work of 64 bits."""
    shift_4 = 8 * tl.arange(0, 4)
    half_R = tl.reshape(eight_RC.to(tl.int32), [_BLOCK, _BLOCK // 4, 4]) << shift_4[None, None, :]
    half_RW = tl.sum(half_R, 2).to(tl.uint32, bitcast=True).to(tl.int64)
    shift_2 = 32 * tl.arange(0, 2)
    word_RW = tl.sum(tl.reshape(half_RW, [_BLOCK, _BLOCK // 8, 2]) << shift_2[None, None, :].to(tl.int64), 2)
    word_W = (tl.load(box + 10) + block_col * _BLOCK) // 8 + tl.arange(0, _BLOCK // 8)
    inside_W = word_W * 8 < tl.load(box + 10) + tl.load(box + 7)
    of_word_W = tl.load(col_factors + word_W, mask=inside_W, other=0)
    of_row_R = tl.load(row_factors + tl.load(box + 9) + row_R, mask=row_R < tl.load(box + 6), other=0)
    return tl.sum(tl.sum(word_RW * of_word_W[None, :], 1) * of_row_R, 0)
