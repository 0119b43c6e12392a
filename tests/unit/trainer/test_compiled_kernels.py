"""Triton compiles the log-probability kernels for both kinds of GPU, with reads and writes of 16 bytes."""

import pytest
import torch
from compiled_kernels import CAPABILITIES, Kernel, compiled_for, widest

from hybridrl.trainer.kernels import fused

ROWS = 4


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gpu", CAPABILITIES)
def test_logits_are_read_and_written_16_bytes_at_a_time(gpu, dtype, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = {name: Kernel(getattr(fused, name)) for name in ("_take", "_turn_into_gradient")}
    for name, kernel in kernels.items():
        monkeypatch.setattr(fused, name, kernel)
    logits, target, row = torch.zeros(ROWS, 16384, dtype=dtype), torch.zeros(ROWS).long(), torch.zeros(ROWS)
    with compiled_for(CAPABILITIES[gpu]):
        fused.take(torch.zeros(4, ROWS), logits, target, 0, 0.7)
        fused.turn_into_gradient(logits, target, row, row, row, row, 0, 0.7)
    (take,), (turn,) = (kernel.ptx for kernel in kernels.values())
    assert widest(take, "ld") == widest(turn, "ld") == widest(turn, "st") == 16
    assert ".local" not in take + turn
