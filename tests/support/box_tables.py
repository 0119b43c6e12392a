"""Random tables of boxes with tensors for them: odd offsets, gaps in rows, vectors, stacks, every dtype."""

import random

import numpy as np
import torch

from hybridrl.reshard.block_fp8 import BlockFP8
from hybridrl.reshard.table import Table

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
OTHERS = (torch.float64, torch.int64, torch.int32, torch.int16, torch.uint8, torch.float8_e4m3fn)


def values(draw, shape, dtype):
    """Random bits of a dtype; floats are finite, of all sizes that 16 bits round or overflow at."""
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    if dtype not in FLOATS:
        return torch.randint(0, 120, (*shape, dtype.itemsize), dtype=torch.uint8, generator=generator).view(
            dtype
        )[..., 0]
    size = torch.randint(-30, 18, shape, generator=generator).float().exp2()
    return (torch.randn(shape, generator=generator) * size).clamp(-6e4, 6e4).to(dtype)


def placed(draw, tensor):
    """The same values somewhere in a larger storage, with gaps between the rows."""
    lead, gap = draw.choice([0, 1, 3, 8]), draw.choice([0, 0, 1, 8])
    if tensor.dim() < 2:
        gap = 0
    shape = (*tensor.shape[:-1], tensor.shape[-1] + gap)
    storage = torch.zeros(lead + int(np.prod(shape)), dtype=tensor.dtype)
    if tensor.dtype == torch.float8_e4m3fn:
        storage = storage.view(torch.uint8).fill_(0x55).view(tensor.dtype)
    view = storage[lead:].view(shape)[..., : tensor.shape[-1]]
    view.copy_(tensor)
    return view


def size_of(tensor):
    return (1, tensor.shape[0]) if tensor.dim() == 1 else (int(np.prod(tensor.shape[:-1])), tensor.shape[-1])


def cuts(draw, length, most):
    """[0, length) in a few stretches."""
    inner = sorted({draw.randrange(1, length) for _ in range(draw.randrange(most))}) if length > 1 else []
    return list(zip([0, *inner], [*inner, length]))


def shape(draw, largest):
    lengths = [draw.randrange(1, largest), draw.randrange(1, largest * 2)]
    return draw.choice([lengths[1:], lengths, [draw.randrange(1, 4), *lengths]])


def strided(seed, largest=40, skip=0.2):
    """(table, sources, targets): copies and casts; boxes tile the targets, but for some left out."""
    draw = random.Random(seed)
    sources, targets, boxes = [], [], []
    for t in range(draw.randrange(1, 4)):
        dtype = draw.choice([*FLOATS, *FLOATS, *OTHERS])
        target = placed(draw, values(draw, shape(draw, largest), dtype))
        targets.append(target)
        rows, cols = size_of(target)
        for row, end in cuts(draw, rows, 3):
            for col, last in cuts(draw, cols, 3):
                if draw.random() < skip:
                    continue
                extra = [draw.randrange(20), draw.randrange(20)]
                of = draw.choice(FLOATS) if dtype in FLOATS else dtype
                source = values(draw, (end - row + extra[0], last - col + extra[1]), of)
                at = [draw.randrange(e + 1) for e in extra]
                boxes.append((len(sources), t, *at, row, col, end - row, last - col))
                sources.append(placed(draw, source))
    draw.shuffle(boxes)
    return table_of(boxes, sources, targets), sources, targets


def blocks(seed, aligned=None):
    """(table, sources, targets): FP8 targets, cut on or inside their blocks, beside a tensor."""
    draw = random.Random(seed)
    dims = [draw.choice([64, 128, 200, 256, 300]), draw.choice([100, 128, 136, 384])]
    lead = draw.choice([[], [2]])
    step = 128 if (draw.random() < 0.5 if aligned is None else aligned) else 1
    flags = {"transposed": draw.random() < 0.5, "power_of_two": draw.random() < 0.5}
    target = empty_fp8(lead, dims, **flags)
    other = torch.zeros(3, 5, dtype=torch.bfloat16)
    sources, boxes = [values(draw, (3, 5), torch.float32)], [(0, 1, 0, 0, 0, 0, 3, 5)]
    for expert in range(lead[0] if lead else 1):
        start = expert * dims[0]
        for row, end in block_cuts(draw, dims[0], step):
            for col, last in block_cuts(draw, dims[1], step):
                source = values(draw, (end - row + 3, last - col + 5), draw.choice(FLOATS))
                boxes.append((len(sources), 0, 3, 5, start + row, col, end - row, last - col))
                sources.append(placed(draw, source))
    return table_of(boxes, sources, [target, other]), sources, [target, other]


def block_cuts(draw, length, step):
    inner = sorted({draw.randrange(1, length) // step * step for _ in range(2)} - {0, length})
    return list(zip([0, *inner], [*inner, length]))


def empty_fp8(lead, dims, transposed=False, power_of_two=False):
    num_blocks = [-(-n // 128) for n in dims]
    scales = torch.zeros(*lead, *(num_blocks[::-1] if transposed else num_blocks))
    quantised = torch.zeros(*lead, *dims, dtype=torch.float8_e4m3fn)
    return BlockFP8(quantised, scales, transposed=transposed, power_of_two=power_of_two)


def table_of(boxes, sources, targets):
    return Table(
        [f"s{i}" for i in range(len(sources))],
        [(0, 0, f"t{i}") for i in range(len(targets))],
        np.array(boxes, np.int64).reshape(-1, 8),
    )


def memory(tensor):
    """All of the storage as bytes, also what is around the tensor."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).clone()


def parts(target):
    return [target.values, target.scales] if isinstance(target, BlockFP8) else [target]


def memories(targets):
    return [memory(part) for target in targets for part in parts(target)]


def fill(targets, saved):
    """Back to what was saved."""
    for part, held in zip((p for t in targets for p in parts(t)), saved, strict=True):
        torch.empty(0, dtype=torch.uint8).set_(part.untyped_storage()).copy_(held)


def outcome(executor, case, **options):
    """(memories, checksums, scale checksums, bytes) after a write; the targets are then put back."""
    table, sources, targets = case
    saved = memories(targets)
    done = executor.prepare(table, sources, targets, **options).write(sources)
    found = memories(targets)
    fill(targets, saved)
    return found, done.checksums, done.scale_checksums, done.bytes


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)) and a[1:] == b[1:]


def aligned(seed):
    """(table, sources, targets): every cast and copy of floats at multiples of 16 bytes, in several tiles."""
    draw = random.Random(seed)
    sources = [values(draw, (37, 152), dtype) for dtype in FLOATS]
    targets = [torch.zeros(70, 304, dtype=dtype) for dtype in FLOATS]
    boxes = [(s, t, 1, 8, 2 + 36 * (s == 1), 8 + 152 * (s == 2), 30, 136) for s in range(3) for t in range(3)]
    return table_of(boxes, sources, targets), sources, targets


def between_codes(seed):
    """(table, sources, targets): FP8 values next to where E4M3 rounds; one scale is at its floor."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    source = torch.empty(128, 384)
    for block, amax in zip(source.split(128, dim=1), (draw.uniform(1, 2), draw.uniform(300, 600), 1e-6)):
        code = torch.randint(-9, 8, block.shape, generator=generator).float().exp2()
        middle = code * (1 + (2 * torch.randint(8, block.shape, generator=generator) + 1) / 16)
        block.copy_(middle * (max(amax, 1e-4) / 448))
        block.clamp_(max=amax)[0, 0] = amax
    target = empty_fp8([], [128, 384])
    return table_of([(0, 0, 0, 0, 0, 0, 128, 384)], [source], [target]), [source], [target]
