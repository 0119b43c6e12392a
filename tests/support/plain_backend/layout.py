"""Every tensor of the model folder on one rank. Imports no torch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Holding
from hybridrl.layout.sharding import Place, shard
from hybridrl.layout.trainers import CheckpointTensors
from hybridrl.models.table import Parameter, Row, Site


@dataclass(frozen=True)
class PlainLayout(CheckpointTensors):
    """Every tensor of the model folder on one rank."""

    @classmethod
    def of(cls, spec: Any, *, on_gpu: bool, **sizes: Any) -> "PlainLayout":
        layout = cls(spec, **sizes)
        if layout.world_size > 1:
            raise LayoutError(f"{layout.shape}: the plain backend has one rank", fix="tp = 1")
        return layout

    @classmethod
    def refuse_unbuildable(cls, model: Any, *, where: str) -> None: ...

    def num_parts(self, row: Row, site: Site) -> int:
        return 1

    def place(self, parameters: Iterable[Parameter]) -> Iterator[Holding]:
        for parameter in parameters:
            for site in self.sites(parameter.row):
                held = shard(site, parameter, Place(0, 1, self.spec, self.spec.vocab_size))
                yield Holding.of(parameter, site.tensor, held, parameter.layers, range(1), parameter.experts)
