"""A Hugging Face checkpoint as a layout of one rank: every tensor is a row block of a canonical parameter."""

from dataclasses import dataclass
from itertools import accumulate

from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.cuts import Held
from hybridrl.layout.runs import Run, whole
from hybridrl.models.spec import parameters
from hybridrl.models.table import Parameter


@dataclass(frozen=True)
class HFLayout(Layout):
    """One rank that holds everything, unfused. A tied model has no lm_head.weight."""

    @property
    def world_size(self) -> int:
        return 1

    def _holdings(self) -> list[Holding]:
        return [held for parameter in parameters(self.spec) for held in self._blocks(parameter)]

    def _blocks(self, parameter: Parameter) -> list[Holding]:
        layers = range(self.spec.num_layers if parameter.per_layer else 1)
        num_cols = parameter.cols or 1
        starts = accumulate(parameter.blocks, initial=0)
        return [
            Holding.of(
                parameter, name, Held(rows, (Run(at, rows, 0),), num_cols, whole(num_cols)), layers, (0,)
            )
            for name, rows, at in zip(parameter.row.hf, parameter.blocks, starts, strict=False)
        ]
