"""How tensor parallelism shards a parameter: one function for each kind that a model table can name.

Every sharding is a row map times a column map, so intersecting two layouts takes two one-dimensional merges.
"""

from collections.abc import Callable
from typing import NamedTuple

from hybridrl.errors import LayoutError
from hybridrl.layout.runs import Run, Runs, join, whole, window
from hybridrl.models.spec import ModelSpec
from hybridrl.models.table import Parameter, Site


class Place(NamedTuple):
    """A rank of a tensor-parallel group, and the sizes that sharding needs besides the parameter."""

    rank: int
    size: int
    spec: ModelSpec
    padded_vocab: int
    """Rows of the padded vocabulary in this layout, a multiple of `size`."""

    interleave: int = 0
    """Rows of gate that alternate with as many rows of up; 0: the layout does not interleave them."""


class Held(NamedTuple):
    """A rank's part of a parameter: local row count and row map, local column count and column map."""

    num_rows: int
    rows: Runs
    num_cols: int
    cols: Runs


def shard(site: Site, parameter: Parameter, place: Place) -> Held:
    """The part of `parameter`, for one expert, that the rank at `place` holds in the tensor at `site`.

    Raises:
        LayoutError: the parameter does not divide over the group.
    """
    before, kept = parameter.keep(site.blocks)
    held = _SHARDERS[site.sharding](kept, place)
    if not before:
        return held
    return held._replace(rows=tuple(run._replace(at=run.at + before) for run in held.rows))


def _whole(parameter: Parameter, place: Place) -> Held:
    return _rows(parameter, parameter.num_rows, whole(parameter.num_rows))


def _even_rows(parameter: Parameter, place: Place) -> Held:
    """Each row block is split evenly. A rank holds its slice of gate, then its slice of up."""
    runs, at, local = [], 0, 0
    for block in parameter.blocks:
        part = _divide(block, place, parameter.name)
        runs.append(Run(at + place.rank * part, part, local))
        at, local = at + block, local + part
    return _rows(parameter, local, join(runs))


def _gate_up(parameter: Parameter, place: Place) -> Held:
    """Gate and up of an engine's experts: as in _even_rows, or with alternating groups of rows."""
    held = _even_rows(parameter, place)
    step = place.interleave
    if not step:
        return held
    part = held.num_rows // 2
    if part % step:
        raise LayoutError(f"{parameter.name}: {part} rows do not divide into groups of {step}")
    first, up = place.rank * part, parameter.blocks[0] + place.rank * part
    runs = [
        run
        for i in range(0, part, step)
        for run in (Run(first + i, step, 2 * i), Run(up + i, step, 2 * i + step))
    ]
    return held._replace(rows=join(runs))


def _even_columns(parameter: Parameter, place: Place) -> Held:
    part = _divide(_num_cols(parameter), place, parameter.name)
    return Held(parameter.num_rows, whole(parameter.num_rows), part, (Run(place.rank * part, part, 0),))


def _vocabulary(parameter: Parameter, place: Place) -> Held:
    """The vocabulary is padded at the end, then split evenly. The last ranks may hold only padding."""
    part = place.padded_vocab // place.size
    first = place.rank * part
    return _rows(parameter, part, window([(0, parameter.num_rows)], first, first + part))


def _grouped_qkv(parameter: Parameter, place: Place) -> Held:
    """Megatron's order: the q heads of a query group, its k, its v, then the next group. The rows are split
    evenly, also inside a group."""
    spec = place.spec
    head, group = spec.head_dim, spec.num_heads // spec.num_kv_heads * spec.head_dim
    first_k, first_v = parameter.blocks[0], parameter.blocks[0] + parameter.blocks[1]
    order = [
        block
        for g in range(spec.num_kv_heads)
        for block in ((g * group, group), (first_k + g * head, head), (first_v + g * head, head))
    ]
    part = _divide(parameter.num_rows, place, parameter.name)
    return _rows(parameter, part, window(order, place.rank * part, (place.rank + 1) * part))


def _heads(parameter: Parameter, place: Place) -> Held:
    """SGLang's order: q heads, k heads, v heads. With more ranks than kv heads, these are replicated."""
    spec = place.spec
    q = _divide(spec.num_heads, place, parameter.name) * spec.head_dim
    repeat = max(1, place.size // spec.num_kv_heads)
    kv_place = place._replace(rank=place.rank // repeat, size=place.size // repeat)
    kv = _divide(spec.num_kv_heads, kv_place, parameter.name) * spec.head_dim
    first_k, first_v = parameter.blocks[0], parameter.blocks[0] + parameter.blocks[1]
    runs = [
        Run(place.rank * q, q, 0),
        Run(first_k + kv_place.rank * kv, kv, q),
        Run(first_v + kv_place.rank * kv, kv, q + kv),
    ]
    return _rows(parameter, q + 2 * kv, join(runs))


def fits(spec: ModelSpec, tp: int) -> bool:
    """Whether tensor parallelism of this size can shard the model, apart from its experts."""
    return spec.heads_divide(tp) and spec.ffn_divides(tp)


def refuse_unfit(spec: ModelSpec, tp: int) -> None:
    """
    Raises:
        LayoutError: tensor parallelism of this size cannot shard the model. The error names sizes that can.
    """
    if not fits(spec, tp):
        sizes = [size for size in range(1, spec.num_heads + 1) if fits(spec, size)]
        parts = [f"{spec.num_heads} attention heads"]
        if not spec.latent:
            parts.append(f"{spec.num_kv_heads} key-value heads")
        parts += [f"{size} feed-forward columns" for size in spec.ffn_sizes]
        raise LayoutError(
            f"tp = {tp} does not divide the model's {', '.join(parts)}",
            fix=f"use one of {', '.join(map(str, sizes))}",
        )


def refuse_unfit_experts(spec: ModelSpec, ep: int, tp: int) -> None:
    """
    Args:
        ep: number of groups that the experts of a layer are partitioned into.
        tp: number of ranks that each expert is sharded over.

    Raises:
        LayoutError: the experts do not divide like this. The error names sizes that work.
    """
    if spec.num_experts % ep:
        raise LayoutError(
            f"ep = {ep} does not divide the {spec.num_experts} experts",
            fix=f"use one of {', '.join(map(str, divisors(spec.num_experts)))}",
        )
    if not spec.num_experts and ep > 1:
        raise LayoutError(f"ep = {ep}, but the model has no experts", fix="ep = 1")
    if spec.expert_ffn_size % tp:
        raise LayoutError(
            f"{tp} ranks for each expert do not divide its {spec.expert_ffn_size} feed-forward columns",
            fix=f"use one of {', '.join(map(str, divisors(spec.expert_ffn_size)))}",
        )


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


_SHARDERS: dict[str, Callable[[Parameter, Place], Held]] = {
    "whole": _whole,
    "rows": _even_rows,
    "gate_up": _gate_up,
    "columns": _even_columns,
    "vocab": _vocabulary,
    "grouped_qkv": _grouped_qkv,
    "heads": _heads,
}


def _rows(parameter: Parameter, num_rows: int, rows: Runs) -> Held:
    return Held(num_rows, rows, _num_cols(parameter), whole(_num_cols(parameter)))


def _num_cols(parameter: Parameter) -> int:
    return 1 if parameter.cols is None else parameter.cols


def _divide(length: int, place: Place, name: str) -> int:
    part, rest = divmod(length, place.size)
    if rest:
        raise LayoutError(f"tp = {place.size} does not divide the {length} of {name}")
    return part
