"""How tensor parallelism cuts a parameter, one function for each kind that a model table can name.

Every cut is separable, a row map times a column map, so two layouts meet in two one-dimensional merges.
"""

from collections.abc import Callable
from typing import NamedTuple

from hybridrl.errors import LayoutError
from hybridrl.layout.runs import Run, Runs, join, whole, window
from hybridrl.models.spec import ModelSpec
from hybridrl.models.table import Cut, Parameter


class Place(NamedTuple):
    """A rank of a tensor-parallel group, and what the cuts need to know beside the parameter."""

    rank: int
    size: int
    spec: ModelSpec
    padded_vocab: int
    """Rows of the vocabulary in this layout, a multiple of `size`."""


class Held(NamedTuple):
    """A rank's part: local row count and row map, local column count and column map."""

    num_rows: int
    rows: Runs
    num_cols: int
    cols: Runs


def cut(kind: Cut, parameter: Parameter, place: Place) -> Held:
    """The part of `parameter` that the rank at `place` holds.

    Raises:
        LayoutError: it does not divide over the group.
    """
    return _CUTS[kind](parameter, place)


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
    """Both Megatron and SGLang cut between heads, or repeat key-value heads a whole number of times."""
    kv_heads = spec.num_kv_heads % tp == 0 or tp % spec.num_kv_heads == 0
    return spec.num_heads % tp == 0 and kv_heads and spec.ffn_size % tp == 0


def refuse_unfit(spec: ModelSpec, tp: int) -> None:
    """
    Raises:
        LayoutError: tensor parallelism of this size cannot cut the model; names the sizes that can.
    """
    if not fits(spec, tp):
        sizes = [size for size in range(1, spec.num_heads + 1) if fits(spec, size)]
        raise LayoutError(
            f"tp = {tp} does not divide the model's {spec.num_heads} attention heads, "
            f"{spec.num_kv_heads} key-value heads and {spec.ffn_size} feed-forward columns",
            fix=f"use one of {', '.join(map(str, sizes))}",
        )


_CUTS: dict[str, Callable[[Parameter, Place], Held]] = {
    "whole": _whole,
    "rows": _even_rows,
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
