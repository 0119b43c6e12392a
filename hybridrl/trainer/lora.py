"""What the LoRA of all backends shares: the values that adapters start with, and a model without them."""

import contextlib
import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def first_a(name: str, seed: int, rank: int, num_inputs: int) -> Tensor:
    """Factor A of a layer at first, like a linear layer of its size: uniform within 1 / sqrt(inputs).

    It is whole on every rank, so that a run starts alike on every parallel layout and backend. B starts at 0.

    Args:
        name: canonical name of the layer's weight.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    return torch.empty(rank, num_inputs).uniform_(-1, 1, generator=draw) / math.sqrt(num_inputs)


@contextlib.contextmanager
def switched_off(adapters: Iterable[Any]) -> Iterator[None]:
    """A context in which a model computes without these adapters.

    Args:
        adapters: modules with an attribute `switched_on`.
    """
    found = list(adapters)
    try:
        for adapter in found:
            adapter.switched_on = False
        yield
    finally:
        for adapter in found:
            adapter.switched_on = True
