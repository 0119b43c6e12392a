"""Tensors that are computed from live ones on access."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping

from torch import Tensor


class TensorView(Mapping[str, Tensor]):
    """A mapping with the names of another one. A subclass says what it has under a name."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    @abstractmethod
    def __getitem__(self, name: str) -> Tensor: ...

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # Mapping would compute the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
