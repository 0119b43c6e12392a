"""Differences between a row and the reference, and the mesh axes that cause them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridrl.layout.hf import HFLayout
from hybridrl.models.fused_experts import parts
from hybridrl.models.spec import ModelSpec
from hybridrl.reshard.hf_files import Checkpoint
from hybridrl.verify.layouts import Row
from hybridrl.verify.measure import Measured

_NEGLIGIBLE = 1e-4
"""If a parameter's largest gradient is below this share of the model's largest one, differences are relative
to that share: the parameter's own gradient may be rounding error only."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Relative differences between a row and the reference, each of the worst minibatch."""

    loss: float
    """Difference relative to the largest loss of a minibatch."""

    grad_norm: float
    """Difference relative to the largest gradient norm of a minibatch."""

    gradient: float
    """Largest difference of an element relative to the largest element, of the worst parameter."""

    parameter: str
    """Hugging Face name of the worst parameter; empty if all are equal."""

    @property
    def largest(self) -> float:
        return max(self.loss, self.grad_norm, self.gradient)


class Reference:
    """The row that all others are compared with."""

    def __init__(self, measured: Measured, model: ModelSpec) -> None:
        self.measured, self._parts = measured, parts(model)
        folders = [Checkpoint(folder, self._parts) for folder in measured.gradients]
        self._scales = _scales(folders, list(HFLayout(model).shards(0)))

    def compare(self, measured: Measured) -> Difference:
        """Compare a row with the reference. A difference that is NaN counts as infinite."""
        gradient, parameter = max(self._gradients(measured.gradients), default=(0.0, ""))
        return Difference(
            loss=_relative(self.measured.loss, measured.loss),
            grad_norm=_relative(self.measured.grad_norm, measured.grad_norm),
            gradient=gradient,
            parameter=parameter if gradient else "",
        )

    def _gradients(self, folders: Sequence[Path]) -> Iterator[tuple[float, str]]:
        """(relative difference, parameter) for every parameter and minibatch."""
        for own, other in zip(self.measured.gradients, folders, strict=True):
            reference, found = Checkpoint(own, self._parts), Checkpoint(other, self._parts)
            for name, scale in self._scales.items():
                difference = float((found[name] - reference[name]).abs().max())
                yield _number(difference / scale if scale else difference), name


def _scales(folders: Sequence[Checkpoint], names: Sequence[str]) -> dict[str, float]:
    """Scale of each parameter's differences: its largest gradient, at least _NEGLIGIBLE of the model's."""
    largest: dict[str, float] = {}
    for checkpoint in folders:
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
    """The axes that break the equality. A combination is blamed only if each of its axes alone is equal.

    Args:
        holds: every measured row, and whether it equals the reference.
    """
    sound = {axis for row, good in holds.items() if good and len(row.axes) == 1 for axis in row.axes}
    blamed: list[frozenset[str]] = []
    for row in sorted((r for r, good in holds.items() if not good), key=lambda r: len(r.axes)):
        if not any(known <= row.axes for known in blamed):
            blamed.append(row.axes - sound or row.axes)
    return [" with ".join(sorted(axes)) for axes in blamed]
