"""vLLM engine shards (0.33): tensor parallel inside each data-parallel engine, experts over all engines.

A tied model has no lm_head: the engine uses the embedding. The layout does not cover quantised weights,
redundant experts (EPLB), round-robin experts (expert_placement_strategy round_robin), and kernels that expect
up before gate.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Holding, Layout
from hybridrl.layout.sharding import Place, refuse_unfit, refuse_unfit_experts, shard
from hybridrl.models.spec import parameters
from hybridrl.models.table import Parameter, Row, Site

_VOCAB_MULTIPLE = 64
"""vLLM's DEFAULT_VOCAB_PADDING_SIZE."""


@dataclass(frozen=True)
class VLLMLayout(Layout):
    """Ranks count tp fastest, then dp."""

    tp: int = 1
    dp: int = 1
    """Number of data-parallel engines; each has all weights except experts, which they share."""

    expert_parallel: bool = False
    """True: the experts are partitioned over all ranks (--enable-expert-parallel). False: each expert is
    sharded over all ranks."""

    def __post_init__(self) -> None:
        refuse_unfit(self.spec, self.tp)
        if not self.expert_parallel:
            refuse_unfit_experts(self.spec, 1, self.world_size)
        elif self.spec.num_experts < self.world_size:
            raise LayoutError(
                f"{self.world_size} ranks for {self.spec.num_experts} experts", fix="lower tp or dp"
            )
        if self.padded_vocab % self.tp:
            raise LayoutError(
                f"tp = {self.tp} does not divide the vocabulary, padded to {self.padded_vocab}",
                fix="use another tp",
            )

    @property
    def world_size(self) -> int:
        return self.tp * self.dp

    @property
    def padded_vocab(self) -> int:
        """Rows of the padded vocabulary over all tp ranks."""
        return -(-self.spec.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE

    def _holdings(self) -> Iterator[Holding]:
        for parameter in parameters(self.spec):
            for site in parameter.row.vllm or parameter.row.engine:
                if parameter.row.per_expert and self.expert_parallel:
                    yield from self._partition(parameter, site)
                else:
                    yield from self._shard(parameter, site)

    def _partition(self, parameter: Parameter, site: Site) -> Iterator[Holding]:
        """Holdings of whole experts, in order. If they do not divide, the first ranks have one more."""
        held = shard(site, parameter, self._place(0, 1))
        least, more = divmod(len(parameter.experts), self.world_size)
        for rank in range(self.world_size):
            first = rank * least + min(rank, more)
            mine = parameter.experts[first : first + least + (rank < more)]
            yield Holding.of(parameter, site.tensor, held, parameter.layers, range(rank, rank + 1), mine)

    def _shard(self, parameter: Parameter, site: Site) -> Iterator[Holding]:
        size = 1 if site.sharding == "whole" else self._size(parameter.row)
        for at in range(size):
            held = shard(site, parameter, self._place(at, size))
            ranks = range(at, self.world_size, size)
            yield Holding.of(parameter, site.tensor, held, parameter.layers, ranks, parameter.experts)

    def _size(self, row: Row) -> int:
        """Number of ranks that a copy of the parameter is sharded over."""
        if row.per_expert:
            return self.world_size
        # Each rank then processes part of the tokens in the shared experts, so it needs all of them.
        scattered = self.expert_parallel and self.tp > 1 and self.dp > 1
        return 1 if row.group == "shared" and scattered else self.tp

    def _place(self, rank: int, size: int) -> Place:
        return Place(rank, size, self.spec, self.padded_vocab)
