"""Triton compiles the kernels of the weight update for both kinds of GPU, with wide reads and writes."""

from collections.abc import Iterator

import pytest
import torch
from compiled_kernels import CAPABILITIES, Kernel, compiled_for, widest

from hybridrl.reshard.kernels import boxes

BOXES = torch.zeros(2, 15, dtype=torch.int64)
TILES = torch.zeros(2, 3, dtype=torch.int64)
NUMBERS = torch.zeros(8, dtype=torch.int64)


@pytest.fixture(params=CAPABILITIES)
def gpu(request, monkeypatch, tmp_path) -> Iterator[None]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with compiled_for(CAPABILITIES[request.param]):
        yield


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("sums", [NUMBERS, None], ids=["sums", "no_sums"])
def test_copies_and_casts_move_16_bytes_at_a_time(gpu, sums, monkeypatch) -> None:
    move = Kernel(boxes._move)
    monkeypatch.setattr(boxes, "_move", move)
    boxes.move(BOXES, TILES, (NUMBERS, NUMBERS), (NUMBERS, NUMBERS), sums)
    (ptx,) = move.ptx
    for wide in ("ld.global.v2.b64", "st.global.v2.b64", "ld.global.v4.b32", "st.global.v4.b32"):
        assert wide in ptx, wide  # 16-byte units of copies, and 8 elements of casts
    assert ".local" not in ptx  # nothing is spilled


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("rounds", [True, False], ids=["by_instruction", "by_integers"])
def test_fp8_blocks_are_read_16_and_written_8_bytes_at_a_time(gpu, rounds, monkeypatch) -> None:
    quantise = Kernel(boxes._quantise)
    monkeypatch.setattr(boxes, "_quantise", quantise)
    monkeypatch.setattr(boxes, "_rounds_fp8", lambda device: rounds)
    for sums in (NUMBERS, None):
        boxes.quantise(BOXES, TILES, (NUMBERS, NUMBERS), (NUMBERS, NUMBERS), sums)
    for ptx in quantise.ptx:
        assert (widest(ptx, "ld"), widest(ptx, "st")) == (16, 8)
        assert ("cvt.rn.satfinite.e4m3x2.f32" in ptx) is rounds
        assert ".local" not in ptx
