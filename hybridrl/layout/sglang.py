"""SGLang engine shards: tensor and expert parallel, with or without data-parallel attention.

A tied model has no lm_head: the engine reads the embedding. Not covered: quantised weights, shared experts
fused with the others (SGLang has to be started with --disable-shared-experts-fusion), experts held twice
(EPLB), a backend that carries tokens to experts (--moe-a2a-backend), and plain layers that are not cut
(--moe-dense-tp-size 1).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.sharding import Place, refuse_unfit, refuse_unfit_experts, shard
from hybridrl.models.spec import family_of, parameters
from hybridrl.models.table import Parameter, Site

_VOCAB_MULTIPLE = 64
"""SGLang's DEFAULT_VOCAB_PADDING_SIZE; times tp where the padded vocabulary does not divide."""


@dataclass(frozen=True)
class SGLangLayout(Layout):
    """Ranks count places in a group fastest, then the copies of the attention or the parts of the experts."""

    tp: int = 1
    ep: int = 1
    """Parts that the experts of a layer are dealt into; tp / ep ranks share each expert, side by side."""

    dp_attention: int = 1
    """Copies of embedding and attention, each over tp / dp_attention neighbouring ranks."""

    dp_lm_head: bool = False
    """The output layer is copied like the attention (--enable-dp-lm-head)."""

    interleave: int = 0
    """Rows of gate before as many of up in the experts' w13; 0: all of gate before all of up.

    SGLANG_OPT_FUSE_SWIGLU_INTERLEAVED makes it 1.
    """

    def __post_init__(self) -> None:
        for name, size in (("ep", self.ep), ("dp_attention", self.dp_attention)):
            if self.tp % size:
                raise LayoutError(f"{name} = {size} does not divide tp = {self.tp}", fix=f"change {name}")
        if self.dp_attention > 1 and not family_of(self.spec).dp_attention:
            raise LayoutError(
                f"SGLang has no data-parallel attention for {self.spec.family}", fix="dp_attention = 1"
            )
        self._refuse_unfit()
        refuse_unfit_experts(self.spec, self.ep, self.tp // self.ep)

    def _refuse_unfit(self) -> None:
        heads = self.tp // self.dp_attention
        if self.dp_attention == 1:
            refuse_unfit(self.spec, self.tp)
        elif not self.spec.heads_divide(heads) or not self.spec.ffn_divides(self.tp):
            raise LayoutError(
                f"tp = {self.tp} with dp_attention = {self.dp_attention}: {heads} ranks do not divide the "
                f"attention heads, or {self.tp} ranks the feed-forward columns",
                fix="change tp or dp_attention",
            )

    @property
    def world_size(self) -> int:
        return self.tp

    def _holdings(self) -> Iterator[Holding]:
        for parameter in parameters(self.spec):
            for site in parameter.row.engine:
                yield from self._shard(parameter, site)

    def _shard(self, parameter: Parameter, site: Site) -> Iterator[Holding]:
        size = 1 if site.sharding == "whole" else self._size(parameter)
        ep = self.ep if parameter.row.per_expert else 1
        experts = len(parameter.experts) // ep
        for at in range(size):
            held = shard(
                site, parameter, Place(at, size, self.spec, self.padded_vocab(size), self.interleave)
            )
            one = Holding.of(
                parameter, site.tensor, held, parameter.layers, range(0), parameter.experts[:experts]
            )
            for e in range(ep):
                mine = parameter.experts[e * experts : (e + 1) * experts]
                yield one.on(parameter.layers, range(at + e * size, self.tp, size * ep), mine)

    def _size(self, parameter: Parameter) -> int:
        """Ranks that a copy of the parameter is cut over."""
        row = parameter.row
        if row.per_expert:
            return self.tp // self.ep
        copied = row.group in ("attention", "embed") or (row.group == "head" and self.dp_lm_head)
        return self.tp // self.dp_attention if copied else self.tp

    def padded_vocab(self, size: int) -> int:
        """Rows of the vocabulary over all ranks of a copy."""
        multiple = _VOCAB_MULTIPLE
        if _round_up(self.spec.vocab_size, multiple) % size:
            multiple *= size
        return _round_up(self.spec.vocab_size, multiple)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
