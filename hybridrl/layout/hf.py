"""A Hugging Face checkpoint as a one-rank layout: every tensor is a row block of a canonical parameter."""

from collections.abc import Iterator
from dataclasses import dataclass

from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.sharding import Place, shard
from hybridrl.models.spec import parameters
from hybridrl.models.table import Site


@dataclass(frozen=True)
class HFLayout(Layout):
    """One rank holds all tensors, unfused. A tied model has no lm_head.weight."""

    @property
    def world_size(self) -> int:
        return 1

    def _holdings(self) -> Iterator[Holding]:
        for parameter in parameters(self.spec):
            for block, name in enumerate(parameter.row.hf):
                held = shard(
                    Site(name, "whole", (block,)), parameter, Place(0, 1, self.spec, self.spec.vocab_size)
                )
                yield Holding.of(parameter, name, held, parameter.layers, range(1), parameter.experts)
