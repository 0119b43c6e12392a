"""Megatron-core shards: tensor, pipeline and data parallel. Ranks count tp fastest, then dp, then pp."""

from collections.abc import Iterator
from dataclasses import dataclass

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Holding, Layout, merge
from hybridrl.layout.cuts import Place, cut, refuse_unfit
from hybridrl.models.spec import parameters
from hybridrl.models.table import Parameter, Site


@dataclass(frozen=True)
class MegatronLayout(Layout):
    """Layers in equal parts over the pipeline; embedding on the first stage, output layer on the last."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    vocab_multiple: int = 128
    """The vocabulary is padded to a multiple of this times tp (Megatron's make_vocab_size_divisible_by)."""

    def __post_init__(self) -> None:
        refuse_unfit(self.spec, self.tp)
        qkv_rows = (self.spec.num_heads + 2 * self.spec.num_kv_heads) * self.spec.head_dim
        if qkv_rows % self.tp:
            raise LayoutError(
                f"tp = {self.tp} does not divide the {qkv_rows} rows of fused q, k and v", fix="lower tp"
            )
        if self.spec.num_layers % self.pp:
            raise LayoutError(
                f"pp = {self.pp} does not divide the {self.spec.num_layers} layers",
                fix=f"use one of {', '.join(map(str, _divisors(self.spec.num_layers)))}",
            )

    @property
    def world_size(self) -> int:
        return self.tp * self.dp * self.pp

    @property
    def padded_vocab(self) -> int:
        """Rows of the vocabulary over all tp ranks."""
        multiple = self.vocab_multiple * self.tp
        return -(-self.spec.vocab_size // multiple) * multiple

    def rank(self, tp: int, dp: int, pp: int) -> int:
        return tp + self.tp * (dp + self.dp * pp)

    def layers(self, pp: int) -> range:
        """Layers of a pipeline stage."""
        part = self.spec.num_layers // self.pp
        return range(pp * part, (pp + 1) * part)

    def _holdings(self) -> list[Holding]:
        return [
            held
            for parameter in parameters(self.spec)
            for site, pp, layers in self._stages(parameter)
            for held in self._cut(parameter, site, pp, layers)
        ]

    def _stages(self, parameter: Parameter) -> Iterator[tuple[Site, int, range]]:
        """(where it is kept, pipeline stage, its layers there)"""
        row = parameter.row
        if row.stage == "layers":
            yield from ((row.megatron, pp, self.layers(pp)) for pp in range(self.pp))
        else:
            yield row.megatron, 0 if row.stage == "first" else self.pp - 1, range(1)
        if row.tied_copy and self.spec.tied and self.pp > 1:
            yield row.tied_copy, self.pp - 1, range(1)

    def _cut(self, parameter: Parameter, site: Site, pp: int, layers: range) -> list[Holding]:
        found = []
        for tp in range(self.tp):
            held = cut(site.cut, parameter, Place(tp, self.tp, self.spec, self.padded_vocab))
            ranks = tuple(self.rank(tp, dp, pp) for dp in range(self.dp))
            found.append(Holding.of(parameter, site.tensor, held, layers, ranks))
        return merge(found)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
