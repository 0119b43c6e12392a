"""SGLang engine shards: tensor and expert parallel, with or without data-parallel attention.

A tied model has no lm_head: the engine uses the embedding. Weights may be quantised in blocks of 128 x 128
(FP8), as SGLang reads DeepSeek's checkpoints. The layout covers no other quantisation, no fused
shared experts (start SGLang with --disable-shared-experts-fusion), redundant experts (EPLB), all-to-all
expert backends (--moe-a2a-backend), and dense layers without tensor parallelism (--moe-dense-tp-size 1).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.blocks import is_quantised, unfit_blocks
from hybridrl.layout.sharding import Place, divisors, refuse_unfit, refuse_unfit_experts, shard
from hybridrl.models.spec import family_of, parameters
from hybridrl.models.table import Parameter, Site

_VOCAB_MULTIPLE = 64
"""SGLang's DEFAULT_VOCAB_PADDING_SIZE. It is multiplied by tp if tp does not divide the padded vocabulary."""


@dataclass(frozen=True)
class SGLangLayout(Layout):
    """Ranks count fastest inside a group, then over the copies of the attention or the groups of experts."""

    tp: int = 1
    ep: int = 1
    """Number of groups that the experts of a layer are partitioned into. tp / ep neighbouring ranks share the
    experts of a group."""

    dp_attention: int = 1
    """Number of copies of embedding and attention, each on tp / dp_attention neighbouring ranks."""

    dp_lm_head: bool = False
    """Whether the output layer is copied like the attention (--enable-dp-lm-head)."""

    interleave: int = 0
    """Rows of gate that alternate with as many of up in the experts' w13; 0: all of gate, then all of up.

    It is 1 with SGLANG_OPT_FUSE_SWIGLU_INTERLEAVED.
    """

    fp8: bool = False
    """Whether linear layers and experts are quantised in blocks."""

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
        if self.fp8:
            self._refuse_unfit_blocks()

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

    def _refuse_unfit_blocks(self) -> None:
        if self.interleave:
            raise LayoutError("block FP8 with interleaved rows of gate and up", fix="interleave = 0")
        if wrong := self._unfit_blocks():
            sizes = [str(tp) for tp in divisors(self.tp)[:-1] if self._has_whole_blocks(tp)]
            smaller = f"rollout.parallel.tp: {' or '.join(sizes)}, or " if sizes else ""
            raise LayoutError(wrong, fix=f"{smaller}rollout.precision: bf16")

    def _unfit_blocks(self) -> str:
        """Which weight is not whole blocks on each rank; "" if all are."""
        for parameter in filter(is_quantised, parameters(self.spec)):
            for site in parameter.row.engine:
                size = self._size(parameter, site)
                held = shard(site, parameter, self._place(0, size))
                if wrong := unfit_blocks(parameter, site, held, size):
                    return wrong
        return ""

    def _has_whole_blocks(self, tp: int) -> bool:
        try:
            smaller = replace(
                self, tp=tp, ep=gcd(tp, self.ep), dp_attention=gcd(tp, self.dp_attention), fp8=False
            )
        except LayoutError:
            return False
        return not smaller._unfit_blocks()

    def in_fp8(self) -> "SGLangLayout":
        return replace(self, fp8=True)

    @property
    def world_size(self) -> int:
        return self.tp

    def _holdings(self) -> Iterator[Holding]:
        for parameter in parameters(self.spec):
            for site in parameter.row.engine:
                yield from self._shard(parameter, site)

    def _shard(self, parameter: Parameter, site: Site) -> Iterator[Holding]:
        size = self._size(parameter, site)
        ep = self.ep if parameter.row.per_expert else 1
        experts = len(parameter.experts) // ep
        for at in range(size):
            held = shard(site, parameter, self._place(at, size))
            one = Holding.of(
                parameter, site.tensor, held, parameter.layers, range(0), parameter.experts[:experts]
            )._replace(fp8=self.fp8 and is_quantised(parameter))
            for e in range(ep):
                mine = parameter.experts[e * experts : (e + 1) * experts]
                yield one.on(parameter.layers, range(at + e * size, self.tp, size * ep), mine)

    def _place(self, rank: int, size: int) -> Place:
        return Place(rank, size, self.spec, self.padded_vocab(size), self.interleave)

    def _size(self, parameter: Parameter, site: Site) -> int:
        """Number of ranks that a copy of the parameter is sharded over."""
        row = parameter.row
        if site.sharding == "whole":
            return 1
        if row.per_expert:
            return self.tp // self.ep
        copied = row.group in ("attention", "embed") or (row.group == "head" and self.dp_lm_head)
        return self.tp // self.dp_attention if copied else self.tp

    def padded_vocab(self, size: int) -> int:
        """Rows of the padded vocabulary over all ranks of a copy."""
        multiple = _VOCAB_MULTIPLE
        if _round_up(self.spec.vocab_size, multiple) % size:
            multiple *= size
        return _round_up(self.spec.vocab_size, multiple)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
