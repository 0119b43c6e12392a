"""Operations of a training step as verl counts them for MFU, and the peaks of this machine.

verl counts 6 operations for each weight and token, the embedding and the output layer among the weights, and
6 x length^2 x heads x head size x layers for attention: half of the square, since attention is causal.
What is computed a second time is not counted. MFU is that count over the time, the number of devices, and the
peak of one device.
"""

import time
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
import torch

from hybridrl.estimate.flops import active_weights
from hybridrl.estimate.gpus import GPUS, GPUModel, name_of
from hybridrl.hosts.machine import GPU, Machine
from hybridrl.models.spec import ModelSpec

_ROWS = 1024
"""Rows and columns of the matrices that a CPU is tried with."""

_READ_BYTES = 256 * 2**20
"""More than a cache holds."""


def achieved(model: ModelSpec, lengths: Iterable[int], seconds: float) -> float:
    """Operations a second of forward and backward over sequences of these lengths."""
    return operations(model, lengths) / seconds


def operations(model: ModelSpec, lengths: Iterable[int]) -> float:
    """Operations of forward and backward, by verl's count."""
    length_N = np.fromiter(lengths, float)
    weights = active_weights(model) + 2 * model.vocab_size * model.hidden_size
    attention = model.num_heads * model.head_dim * model.num_layers * float(length_N @ length_N)
    return 6.0 * weights * float(length_N.sum()) + 6.0 * attention


def peak_flops() -> float | None:
    """Operations a second of one device: of a GPU by its data sheet, in bf16; of one core of a CPU as
    measured, the product of two large fp32 matrices on the threads that torch has here. None: the data sheet
    of this GPU is not known.
    """
    gpus = Machine.here().gpus
    if not gpus:
        return matmul_flops(torch.get_num_threads())
    sheet = data_sheet(gpus[0])
    return None if sheet is None else sheet.flops


def data_sheet(gpu: GPU) -> GPUModel | None:
    """Memory and speed of a GPU of this machine; None: they are not known."""
    known = name_of(gpu.name, gpu.memory_bytes)
    return None if known is None else GPUS[known]


def read_bytes_s() -> float:
    """Bytes that all threads of torch read from memory in a second, as measured in about half a second."""
    values = torch.ones(_READ_BYTES // 4)
    return values.nbytes / _best(lambda: values.sum(), 5)


@cache
def matmul_flops(threads: int) -> float:
    """Operations a second of a product of large fp32 matrices, on the threads that torch has here."""
    left, right = torch.ones(_ROWS, _ROWS), torch.ones(_ROWS, _ROWS)
    return 2 * _ROWS**3 / _best(lambda: left @ right, 5)


def _best(call: Callable[[], object], calls: int) -> float:
    """Seconds of the fastest call: other programs only ever slow one down."""
    call()
    spent = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return min(spent)
