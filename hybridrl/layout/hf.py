"""A Hugging Face checkpoint as a layout of one rank: every tensor is a row block of a canonical parameter."""

from dataclasses import dataclass

from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.runs import Run, whole
from hybridrl.models.spec import parameters


@dataclass(frozen=True)
class HFLayout(Layout):
    @property
    def world_size(self) -> int:
        return 1

    def _holdings(self) -> list[Holding]:
        found = []
        for parameter in parameters(self.spec):
            layers = range(self.spec.num_layers if parameter.row.stage == "layers" else 1)
            at, cols = 0, parameter.cols
            for tensor, block in zip(parameter.row.hf, parameter.blocks, strict=True):
                shape = (block,) if cols is None else (block, cols)
                found.append(
                    Holding(
                        parameter.name, tensor, shape, (Run(at, block, 0),), whole(cols or 1), layers, (0,)
                    )
                )
                at += block
        return found
