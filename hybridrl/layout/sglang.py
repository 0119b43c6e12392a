"""SGLang engine shards: tensor parallel. A tied model has no lm_head: the engine reads the embedding."""

from dataclasses import dataclass

from hybridrl.layout.base import Holding, Layout, merge
from hybridrl.layout.cuts import Place, cut, refuse_unfit
from hybridrl.models.spec import parameters

_VOCAB_MULTIPLE = 64
"""SGLang's DEFAULT_VOCAB_PADDING_SIZE; times tp where the padded vocabulary does not divide."""


@dataclass(frozen=True)
class SGLangLayout(Layout):
    tp: int = 1

    def __post_init__(self) -> None:
        refuse_unfit(self.spec, self.tp)

    @property
    def world_size(self) -> int:
        return self.tp

    @property
    def padded_vocab(self) -> int:
        """Rows of the vocabulary over all ranks."""
        multiple = _VOCAB_MULTIPLE
        if _round_up(self.spec.vocab_size, multiple) % self.tp:
            multiple *= self.tp
        return _round_up(self.spec.vocab_size, multiple)

    def _holdings(self) -> list[Holding]:
        found = []
        for parameter in parameters(self.spec):
            layers = range(self.spec.num_layers if parameter.per_layer else 1)
            site = parameter.row.sglang
            for tp in range(self.tp):
                held = cut(site.cut, parameter, Place(tp, self.tp, self.spec, self.padded_vocab))
                found.append(Holding.of(parameter, site.tensor, held, layers, (tp,)))
        return merge(found)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
