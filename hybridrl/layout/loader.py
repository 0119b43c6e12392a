"""An engine that takes weights through its own loader alone: nobody else knows which rank holds what."""

from collections.abc import Iterator
from dataclasses import dataclass

from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.runs import Run
from hybridrl.layout.sharding import Place, refuse_unfit, shard
from hybridrl.models.spec import parameters
from hybridrl.models.table import Parameter, Site


@dataclass(frozen=True)
class LoaderLayout(Layout):
    """An assumption for counting memory, by which nothing is written: even rows of every matrix on each rank,
    and all vectors on every rank."""

    tp: int = 1

    def __post_init__(self) -> None:
        refuse_unfit(self.spec, self.tp)

    @property
    def world_size(self) -> int:
        return self.tp

    def _holdings(self) -> Iterator[Holding]:
        for parameter in parameters(self.spec):
            for block, name in enumerate(parameter.row.hf):
                yield from self._even(parameter, Site(name, "whole", (block,)))

    def _even(self, parameter: Parameter, site: Site) -> Iterator[Holding]:
        held = shard(site, parameter, Place(0, 1, self.spec, self.spec.vocab_size))
        if parameter.cols is None:
            everywhere = range(self.tp)
            yield Holding.of(parameter, site.tensor, held, parameter.layers, everywhere, parameter.experts)
            return
        part = -(-held.num_rows // self.tp)
        for rank, first in enumerate(range(0, held.num_rows, part)):
            rows = min(part, held.num_rows - first)
            mine = held._replace(num_rows=rows, rows=(Run(held.rows[0].at + first, rows, 0),))
            yield Holding.of(
                parameter, site.tensor, mine, parameter.layers, range(rank, rank + 1), parameter.experts
            )
