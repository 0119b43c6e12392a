"""How tensor parallelism cuts a parameter, one function for each kind that a model table can name.

Every cut is separable, a row map times a column map, so two layouts meet in two one-dimensional merges.
"""

from collections.abc import Callable
from typing import NamedTuple

from hybridrl.errors import LayoutError
from hybridrl.layout.runs import Run, Runs, join, whole, window
from hybridrl.models.spec import ModelSpec
from hybridrl.models.table import Parameter, Site


class Place(NamedTuple):
    """A rank of a tensor-parallel group, and what the cuts need to know beside the parameter."""

    rank: int
    size: int
    spec: ModelSpec
    padded_vocab: int
    """Rows of the vocabulary in this layout, a multiple of `size`."""

    interleave: int = 0
    """Rows of gate before as many of up, where a layout interleaves them; 0: it does not."""


class Held(NamedTuple):
    """A rank's part: local row count and row map, local column count and column map."""

    num_rows: int
    rows: Runs
    num_cols: int
    cols: Runs


def shard(site: Site, parameter: Parameter, place: Place) -> Held:
    """The part of `parameter` that the rank at `place` holds in the tensor at `site`, of one expert.

    Raises:
        LayoutError: it does not divide over the group.
    """
    before, kept = parameter.keep(site.blocks)
    held = _SHARDERS[site.sharding](kept, place)
    if not before:
        return held
    return held._replace(rows=tuple(run._replace(at=run.at + before) for run in held.rows))


def _whole(parameter: Parameter, place: Place) -> Held:
    return _rows(parameter, parameter.num_rows, whole(parameter.num_rows))


def _even_rows(parameter: Parameter, place: Place) -> Held:
    """Each row block is cut evenly: a rank holds its slice of gate above its slice of up."""
    runs, at, local = [], 0, 0
    for block in parameter.blocks:
        part = _divide(block, place, parameter.name)
        runs.append(Run(at + place.rank * part, part, local))
        at, local = at + block, local + part
    return _rows(parameter, local, join(runs))


def _gate_up(parameter: Parameter, place: Place) -> Held:
    """An engine's experts: as _even_rows, or with stretches of gate and up in turn."""
    held = _even_rows(parameter, place)
    step = place.interleave
    if not step:
        return held
    part = held.num_rows // 2
    if part % step:
        raise LayoutError(f"{parameter.name}: {part} rows do not divide into stretches of {step}")
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
    """Padded below, then cut evenly; the last ranks may hold padding only."""
    part = place.padded_vocab // place.size
    first = place.rank * part
    return _rows(parameter, part, window([(0, parameter.num_rows)], first, first + part))


def _grouped_qkv(parameter: Parameter, place: Place) -> Held:
    """Megatron: q heads of a group, its k, its v, then the next group; cut evenly, even inside a group."""
    spec = place.spec
    head, group = spec.head_dim, spec.num_heads // spec.num_kv_heads * spec.head_dim
    first_k, first_v = parameter.blocks[0], parameter.blocks[0] + parameter.blocks[1]
    order = [
        stretch
        for g in range(spec.num_kv_heads)
        for stretch in ((g * group, group), (first_k + g * head, head), (first_v + g * head, head))
    ]
    part = _divide(parameter.num_rows, place, parameter.name)
    return _rows(parameter, part, window(order, place.rank * part, (place.rank + 1) * part))


def _heads(parameter: Parameter, place: Place) -> Held:
    """SGLang: q heads, then k heads, then v heads; a kv head is repeated where ranks outnumber them."""
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
    """Tensor parallelism of this size can cut the model, experts aside."""
    return spec.heads_divide(tp) and spec.ffn_divides(tp)


def refuse_unfit(spec: ModelSpec, tp: int) -> None:
    """
    Raises:
        LayoutError: tensor parallelism of this size cannot cut the model; names the sizes that can.
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
        ep: parts that the experts of a layer are dealt into.
        tp: ranks that each expert is cut over.

    Raises:
        LayoutError: that does not divide them; names the sizes that do.
    """
    if spec.num_experts % ep:
        raise LayoutError(
            f"ep = {ep} does not divide the {spec.num_experts} experts",
            fix=f"use one of {', '.join(map(str, divisors(spec.num_experts)))}",
        )
    if not spec.num_experts and ep > 1:
        raise LayoutError(f"ep = {ep}, and the model has no experts", fix="ep = 1")
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
