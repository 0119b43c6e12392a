"""Megatron-core shards: tensor, pipeline and data parallel. Ranks count tp fastest, then dp, then pp."""

from dataclasses import dataclass

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Holding, Layout, merge
from hybridrl.layout.cuts import Place, cut
from hybridrl.models.spec import parameters
from hybridrl.models.table import Parameter, Site


@dataclass(frozen=True)
class MegatronLayout(Layout):
    """Layers in equal parts over the pipeline; embedding on its first stage, final norm and output layer on its last."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    vocab_multiple: int = 128
    """The vocabulary is padded to a multiple of this times tp (Megatron's make_vocab_size_divisible_by)."""

    def __post_init__(self) -> None:
        if self.spec.num_layers % self.pp:
            raise LayoutError(
                f"pp = {self.pp} does not divide the {self.spec.num_layers} layers",
                fix=f"use one of {', '.join(map(str, _divisors(self.spec.num_layers)))}",
            )
        for size, what in (
            (self.spec.num_heads, "attention heads"),
            (self.spec.ffn_size, "feed-forward columns"),
        ):
            if size % self.tp:
                raise LayoutError(
                    f"tp = {self.tp} does not divide the {size} {what}", fix="choose a divisor of it"
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
        found = []
        for parameter in parameters(self.spec):
            row = parameter.row
            stages = {"first": range(1), "layers": range(self.pp), "last": range(self.pp - 1, self.pp)}[
                row.stage
            ]
            for pp in stages:
                found += self._stage(
                    parameter, row.megatron, pp, self.layers(pp) if row.stage == "layers" else range(1)
                )
            if row.tied_copy and self.spec.tied and self.pp > 1:
                found += self._stage(parameter, row.tied_copy, self.pp - 1, range(1))
        return found

    def _stage(self, parameter: Parameter, site: Site, pp: int, layers: range) -> list[Holding]:
        found = []
        for tp in range(self.tp):
            held = cut(site.cut, parameter, Place(tp, self.tp, self.spec, self.padded_vocab))
            ranks = tuple(self.rank(tp, dp, pp) for dp in range(self.dp))
            found.append(Holding.of(parameter, site.tensor, held, layers, ranks))
        return merge(found)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
