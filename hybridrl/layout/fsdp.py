"""FSDP2 shards of a Hugging Face model: every rank has contiguous rows of each checkpoint tensor."""

from collections.abc import Iterator
from dataclasses import dataclass

from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.runs import Run
from hybridrl.layout.sharding import Place, shard
from hybridrl.models.spec import parameters
from hybridrl.models.table import Parameter, Site


@dataclass(frozen=True)
class FSDPLayout(Layout):
    """Rows are partitioned as by torch.chunk: in equal parts; the last may be shorter, and some may be empty.

    A rank without rows does not have the tensor. Ranks count shards fastest, then replicas. A tied model has
    no lm_head.weight.
    """

    num_shards: int = 1
    num_replicas: int = 1
    """Groups of ranks that each hold the whole model, as in hybrid sharding."""

    @property
    def world_size(self) -> int:
        return self.num_shards * self.num_replicas

    def _holdings(self) -> Iterator[Holding]:
        for parameter in parameters(self.spec):
            for block, name in enumerate(parameter.row.hf):
                yield from self._chunk(parameter, Site(name, "whole", (block,)))

    def _chunk(self, parameter: Parameter, site: Site) -> Iterator[Holding]:
        whole = shard(site, parameter, Place(0, 1, self.spec, self.spec.vocab_size))
        (at, num_rows, _), part = whole.rows[0], -(-whole.num_rows // self.num_shards)
        for number, first in enumerate(range(0, num_rows, part)):
            rows = min(part, num_rows - first)
            held = whole._replace(num_rows=rows, rows=(Run(at + first, rows, 0),))
            ranks = range(number, self.world_size, self.num_shards)
            yield Holding.of(parameter, site.tensor, held, parameter.layers, ranks, parameter.experts)
