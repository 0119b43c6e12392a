"""Sends products of float32 matrices on a CPU to oneDNN where MKL is slow.

torch multiplies float32 matrices with MKL, which keeps to AVX2 on processors that are not Intel's. oneDNN,
which torch brings too, uses AVX-512 there and takes about half the time. It reads the matrices where they
lie, so weights are still written in place.

An engine multiplies few rows with the same weights many times. Its weights are besides copied into oneDNN's
blocks at their first product (`pack`), which makes 4 to 32 rows another 1.4 to 1.9 times faster.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

_LEAST_PACKED = 1 << 18
"""Elements of a weight from which its packed copy is the faster one, whatever the number of rows."""

_LEAST_PRODUCTS = 1 << 20
"""Multiplications from which oneDNN is faster: it takes about 10 microseconds to find its kernel."""

_LEAST_ROWS = 5
"""Rows below which MKL reads the weights as fast as memory gives them."""

_library: torch.library.Library | None = None
_replaces_all = False
"""Whether large products of any matrices go to oneDNN, not only those with packed weights."""


@dataclass
class _Weight:
    parameter: nn.Parameter
    packed: Tensor | None = None
    """Its copy in oneDNN's blocks, from its first product on."""


_weights: dict[int, _Weight] = {}
"""Address of the elements -> weight."""


def install() -> None:
    """Replace torch's products of two matrices on CPUs, in this process; a second call changes nothing.

    Nothing changes on processors where MKL is fast.
    """
    if mkl_is_slow():
        replace()


def packs(model: nn.Module) -> bool:
    """Whether the model has weights of which a packed copy is faster here."""
    return any(map(_packs, model.parameters()))


def pack(model: nn.Module) -> None:
    """Multiply with packed copies of the model's large weights from now on.

    A copy is made at the first product with a weight and is as large as the weight. Call this again whenever
    weights have changed or moved: it forgets all copies.
    """
    _weights.clear()
    _weights.update((one.data_ptr(), _Weight(one)) for one in model.parameters() if _packs(one))
    if _weights:
        _intercept()


@cache
def mkl_is_slow() -> bool:
    """Whether this is a processor with AVX-512 on which MKL does not use it, and torch has oneDNN."""
    return torch.backends.mkl.is_available() and _has_avx512() and "GenuineIntel" not in _processor()


def _has_avx512() -> bool:
    return torch.backends.mkldnn.is_available() and "avx512f" in _processor()


@cache
def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _packs(one: nn.Parameter) -> bool:
    plain = one.device.type == "cpu" and one.dtype is torch.float32 and one.dim() == 2 and one.is_contiguous()
    return plain and one.numel() >= _LEAST_PACKED and _has_avx512()


def replace() -> None:
    """Replace them whatever the processor is."""
    global _replaces_all
    _replaces_all = True
    _intercept()


def _intercept() -> None:
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        _library.impl("mm", _mm, "CPU")
        _library.impl("addmm", _addmm, "CPU")


def _mm(left_MK: Tensor, right_KN: Tensor) -> Tensor:
    packed_NK = _packed(left_MK, right_KN)
    if packed_NK is not None:
        return _product(left_MK, packed_NK, None, "none", [], "")
    if _is_faster(left_MK, right_KN):
        return _product(left_MK, right_KN.t(), None, "none", [], "")
    result_MN = left_MK.new_empty(left_MK.shape[0], right_KN.shape[1])
    return _mm_out(left_MK, right_KN, out=result_MN)


def _addmm(added: Tensor, left_MK: Tensor, right_KN: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    plain = beta == 1 and alpha == 1 and added.dim() == 1 and len(added) == right_KN.shape[1]
    if plain and added.dtype is torch.float32:
        packed_NK = _packed(left_MK, right_KN)
        if packed_NK is not None:
            return _product(left_MK, packed_NK, added, "none", [], "")
        if _is_faster(left_MK, right_KN):
            return _product(left_MK, right_KN.t(), added, "none", [], "")
    result_MN = left_MK.new_empty(left_MK.shape[0], right_KN.shape[1])
    return _addmm_out(added, left_MK, right_KN, beta=beta, alpha=alpha, out=result_MN)


def _packed(left_MK: Tensor, right_KN: Tensor) -> Tensor | None:
    """The packed copy of a weight if the right matrix is the whole of it, transposed."""
    weight = _weights.get(right_KN.data_ptr())
    if weight is None or not len(left_MK) or left_MK.dtype is not torch.float32:
        return None
    whole_NK = weight.parameter.data
    moved = whole_NK.data_ptr() != right_KN.data_ptr()  # then this address may be another tensor's by now
    if moved or right_KN.shape != whole_NK.shape[::-1] or right_KN.stride() != whole_NK.stride()[::-1]:
        return None
    if weight.packed is None:
        weight.packed = _reorder(whole_NK, None)
    return weight.packed


def _is_faster(left_MK: Tensor, right_KN: Tensor) -> bool:
    rows, inner = left_MK.shape
    columns = right_KN.shape[1]
    return (
        _replaces_all
        and rows * inner * columns >= _LEAST_PRODUCTS
        and rows >= _LEAST_ROWS
        and left_MK.dtype is torch.float32
        and right_KN.dtype is torch.float32
        and inner == right_KN.shape[0]
    )


_reorder = torch.ops.mkldnn._reorder_linear_weight.default
_product = torch.ops.mkldnn._linear_pointwise.default
_mm_out = torch.ops.aten.mm.out
_addmm_out = torch.ops.aten.addmm.out
