"""Sends products of float32 matrices on a CPU to oneDNN where MKL is slow.

torch multiplies float32 matrices with MKL, which keeps to AVX2 on processors that are not Intel's. oneDNN,
which torch brings too, uses AVX-512 there and takes about half the time. It reads the matrices where they
lie, so weights are still written in place.
"""

import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_LEAST_PRODUCTS = 1 << 20
"""Multiplications from which oneDNN is faster: it takes about 10 microseconds to find its kernel."""

_LEAST_ROWS = 5
"""Rows below which MKL reads the weights as fast as memory gives them."""

_library: torch.library.Library | None = None


def install() -> None:
    """Replace torch's products of two matrices on CPUs, in this process; a second call changes nothing.

    Nothing changes on processors where MKL is fast.
    """
    if mkl_is_slow():
        replace()


@cache
def mkl_is_slow() -> bool:
    """Whether this is a processor with AVX-512 on which MKL does not use it, and torch has oneDNN."""
    try:
        processor = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    available = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return available and "avx512f" in processor and "GenuineIntel" not in processor


def replace() -> None:
    """Replace them whatever the processor is."""
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        _library.impl("mm", _mm, "CPU")
        _library.impl("addmm", _addmm, "CPU")


def _mm(left_MK: Tensor, right_KN: Tensor) -> Tensor:
    if _is_faster(left_MK, right_KN):
        return _product(left_MK, right_KN.t(), None, "none", [], "")
    result_MN = left_MK.new_empty(left_MK.shape[0], right_KN.shape[1])
    return _mm_out(left_MK, right_KN, out=result_MN)


def _addmm(added: Tensor, left_MK: Tensor, right_KN: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    plain = beta == 1 and alpha == 1 and added.dim() == 1 and len(added) == right_KN.shape[1]
    if plain and added.dtype is torch.float32 and _is_faster(left_MK, right_KN):
        return _product(left_MK, right_KN.t(), added, "none", [], "")
    result_MN = left_MK.new_empty(left_MK.shape[0], right_KN.shape[1])
    return _addmm_out(added, left_MK, right_KN, beta=beta, alpha=alpha, out=result_MN)


def _is_faster(left_MK: Tensor, right_KN: Tensor) -> bool:
    rows, inner = left_MK.shape
    columns = right_KN.shape[1]
    return (
        rows * inner * columns >= _LEAST_PRODUCTS
        and rows >= _LEAST_ROWS
        and left_MK.dtype is torch.float32
        and right_KN.dtype is torch.float32
        and inner == right_KN.shape[0]
    )


_product = torch.ops.mkldnn._linear_pointwise.default
_mm_out = torch.ops.aten.mm.out
_addmm_out = torch.ops.aten.addmm.out
