"""SGLang engine shards: tensor parallel. A tied model has no lm_head of its own: it reads the embedding's storage."""

from dataclasses import dataclass

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Holding, Layout, merge
from hybridrl.layout.cuts import Place, cut
from hybridrl.models.spec import parameters

_VOCAB_MULTIPLE = 64
"""SGLang's DEFAULT_VOCAB_PADDING_SIZE; times tp where the padded vocabulary does not divide."""


@dataclass(frozen=True)
class SGLangLayout(Layout):
    tp: int = 1

    def __post_init__(self) -> None:
        spec, tp = self.spec, self.tp
        if not self._fits(tp):
            sizes = [t for t in range(1, spec.num_heads + 1) if self._fits(t)]
            raise LayoutError(
                f"tp = {tp} does not divide the {spec.num_heads} attention heads, {spec.num_kv_heads} key-value heads "
                f"and {spec.ffn_size} feed-forward columns",
                fix=f"use one of {', '.join(map(str, sizes))}",
            )

    def _fits(self, tp: int) -> bool:
        spec = self.spec
        kv_heads = spec.num_kv_heads % tp == 0 or tp % spec.num_kv_heads == 0
        return spec.num_heads % tp == 0 and kv_heads and spec.ffn_size % tp == 0

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
            layers = range(self.spec.num_layers if parameter.row.stage == "layers" else 1)
            site = parameter.row.sglang
            for tp in range(self.tp):
                held = cut(site.cut, parameter, Place(tp, self.tp, self.spec, self.padded_vocab))
                found.append(Holding.of(parameter, site.tensor, held, layers, (tp,)))
        return merge(found)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
