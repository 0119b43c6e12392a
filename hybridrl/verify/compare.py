"""How far a row is from the reference, and which axis is to blame."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridrl.layout.hf import HFLayout
from hybridrl.models.spec import ModelSpec
from hybridrl.reshard.hf_files import Checkpoint
from hybridrl.verify.layouts import Row
from hybridrl.verify.measure import Measured

_NEGLIGIBLE = 1e-4
"""A parameter whose gradients are smaller than this share of the model's largest one is measured against that
share: its own gradient may be rounding alone."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A row against the reference, worst minibatch; all relative."""

    loss: float
    """To the largest loss of a minibatch."""

    grad_norm: float
    gradient: float
    """Largest difference of an element over the largest element, of the worst parameter."""

    parameter: str
    """That parameter, as Hugging Face names it; empty if all are equal."""

    @property
    def largest(self) -> float:
        return max(self.loss, self.grad_norm, self.gradient)


class Reference:
    """What the other rows are compared with."""

    def __init__(self, measured: Measured, model: ModelSpec) -> None:
        self.measured = measured
        self._scales = _scales(measured.gradients, list(HFLayout(model).shards(0)))

    def compare(self, measured: Measured) -> Difference:
        """A difference that is not a number counts as infinite."""
        gradient, parameter = max(self._gradients(measured.gradients), default=(0.0, ""))
        return Difference(
            loss=_relative(self.measured.loss, measured.loss),
            grad_norm=_relative(self.measured.grad_norm, measured.grad_norm),
            gradient=gradient,
            parameter=parameter if gradient else "",
        )

    def _gradients(self, folders: Sequence[Path]) -> Iterator[tuple[float, str]]:
        """(relative difference, parameter) of every parameter and minibatch."""
        for own, other in zip(self.measured.gradients, folders, strict=True):
            reference, found = Checkpoint(own), Checkpoint(other)
            for name, scale in self._scales.items():
                difference = float((found[name] - reference[name]).abs().max())
                yield _number(difference / scale if scale else difference), name


def _scales(folders: Sequence[Path], names: Sequence[str]) -> dict[str, float]:
    """By parameter, its largest gradient, or a share of the model's."""
    largest: dict[str, float] = {}
    for checkpoint in map(Checkpoint, folders):
        for name in names:
            largest[name] = max(largest.get(name, 0.0), float(checkpoint[name].abs().max()))
    least = _NEGLIGIBLE * max(largest.values())
    return {name: max(value, least) for name, value in largest.items()}


def _relative(reference: Sequence[float], found: Sequence[float]) -> float:
    scale = max(map(abs, reference))
    difference = max(_number(abs(a - b)) for a, b in zip(reference, found, strict=True))
    return difference / scale if scale else difference


def _number(value: float) -> float:
    return value if value == value else float("inf")


def blame(holds: Mapping[Row, bool]) -> list[str]:
    """The axes that break the equality, from which rows hold; a combination only where its parts hold alone.

    Args:
        holds: every row that was measured, and whether it equals the reference.
    """
    sound = {axis for row, good in holds.items() if good and len(row.axes) == 1 for axis in row.axes}
    blamed: list[frozenset[str]] = []
    for row in sorted((r for r, good in holds.items() if not good), key=lambda r: len(r.axes)):
        if not any(known <= row.axes for known in blamed):
            blamed.append(row.axes - sound or row.axes)
    return [" with ".join(sorted(axes)) for axes in blamed]
