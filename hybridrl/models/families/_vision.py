"""The vision towers of Qwen-VL models: transformers' modules, whole on every rank that has one.

A canonical parameter is one tensor of the checkpoint, apart from the gate and up of Qwen2.5-VL, which SGLang
keeps in one tensor. Layers of the tower are no layers of the text model: each has its own parameters.
"""

from collections.abc import Iterator, Sequence
from math import prod

from hybridrl.models.table import Parameter, Row, Site
from hybridrl.models.vision import VisionSpec


def qwen3_tower(vision: VisionSpec) -> Iterator[Parameter]:
    """The tower of Qwen3-VL, with the mergers of DeepStack."""
    hidden, ffn = vision.hidden_size, vision.ffn_size
    stem = "model.visual."
    yield _patches(stem, vision)
    yield _tensor(stem, "patch_embed.proj.bias", (hidden,))
    yield _tensor(stem, "pos_embed.weight", (vision.num_positions, hidden))
    for layer in range(vision.depth):
        block = f"blocks.{layer}"
        for norm in ("norm1", "norm2"):
            yield _tensor(stem, f"{block}.{norm}.weight", (hidden,), norm=True)
            yield _tensor(stem, f"{block}.{norm}.bias", (hidden,))
        yield from _attention(stem, block, hidden)
        yield from _linear(stem, f"{block}.mlp.linear_fc1", ffn, hidden)
        yield from _linear(stem, f"{block}.mlp.linear_fc2", hidden, ffn)
    yield from _qwen3_merger(stem, "merger", vision, normed=hidden)
    for number in range(len(vision.deep_layers)):
        joined = hidden * vision.merge_size**2
        yield from _qwen3_merger(stem, f"deepstack_merger_list.{number}", vision, normed=joined)


def qwen2_5_tower(vision: VisionSpec) -> Iterator[Parameter]:
    """The tower of Qwen2.5-VL, whose checkpoints have it beside the text model."""
    hidden, ffn = vision.hidden_size, vision.ffn_size
    joined = hidden * vision.merge_size**2
    stem = "visual."
    yield _patches(stem, vision)
    for layer in range(vision.depth):
        block = f"blocks.{layer}"
        for norm in ("norm1", "norm2"):
            yield _tensor(stem, f"{block}.{norm}.weight", (hidden,), norm=True)
        yield from _attention(stem, block, hidden)
        yield _gate_up(stem, block, "weight", ffn, hidden)
        yield _gate_up(stem, block, "bias", ffn, None)
        yield from _linear(stem, f"{block}.mlp.down_proj", hidden, ffn)
    yield _tensor(stem, "merger.ln_q.weight", (hidden,), norm=True)
    yield from _linear(stem, "merger.mlp.0", joined, joined)
    yield from _linear(stem, "merger.mlp.2", vision.out_size, joined)


def projector(name: str) -> bool:
    """Whether a tensor of a tower, by its name in transformers' module, turns features into the text model's
    space."""
    return name.startswith(("merger.", "deepstack_merger_list."))


def _patches(stem: str, vision: VisionSpec) -> Parameter:
    size = vision.patch_size
    return _tensor(stem, "patch_embed.proj.weight", (vision.hidden_size, 3, vision.frames, size, size))


def _attention(stem: str, block: str, hidden: int) -> Iterator[Parameter]:
    for end, shape in (("weight", (3 * hidden, hidden)), ("bias", (3 * hidden,))):
        engine = f"{block}.attn.qkv_proj.{end}"
        yield _tensor(stem, f"{block}.attn.qkv.{end}", shape, engine=engine)
    yield from _linear(stem, f"{block}.attn.proj", hidden, hidden)


def _qwen3_merger(stem: str, name: str, vision: VisionSpec, *, normed: int) -> Iterator[Parameter]:
    joined = vision.hidden_size * vision.merge_size**2
    yield _tensor(stem, f"{name}.norm.weight", (normed,), norm=True)
    yield _tensor(stem, f"{name}.norm.bias", (normed,))
    yield from _linear(stem, f"{name}.linear_fc1", joined, joined)
    yield from _linear(stem, f"{name}.linear_fc2", vision.out_size, joined)


def _linear(stem: str, name: str, rows: int, cols: int) -> Iterator[Parameter]:
    yield _tensor(stem, f"{name}.weight", (rows, cols))
    yield _tensor(stem, f"{name}.bias", (rows,))


def _gate_up(stem: str, block: str, end: str, ffn: int, cols: int | None) -> Parameter:
    names = [f"{block}.mlp.{part}_proj.{end}" for part in ("gate", "up")]
    row = Row(
        name=f"vision.{block}.mlp.gate_up.{end}",
        rows=(),
        hf=tuple(f"{stem}{name}" for name in names),
        megatron=tuple(Site(f"visual.{name}", "whole", (i,)) for i, name in enumerate(names)),
        engine=(Site(f"visual.{block}.mlp.gate_up_proj.{end}", "whole"),),
        stage="first",
    )
    return Parameter(row.name, (ffn, ffn), cols, row, range(1), range(1))


def _tensor(
    stem: str, name: str, shape: Sequence[int], *, engine: str | None = None, norm: bool = False
) -> Parameter:
    """One tensor, a matrix whose rows are all axes but the last.

    Args:
        name: in transformers' module of the tower.
        engine: name in SGLang's module, if that differs.
    """
    row = Row(
        name=f"vision.{name.removesuffix('.weight')}_norm" if norm else f"vision.{name}",
        rows=(),
        hf=(stem + name,),
        megatron=(Site(f"visual.{name}", "whole"),),
        engine=(Site(f"visual.{engine or name}", "whole"),),
        stage="first",
    )
    if len(shape) == 1:
        return Parameter(row.name, (shape[0],), None, row, range(1), range(1))
    rows, several = prod(shape[:-1]), len(shape) > 2
    tensor = tuple(shape) if several else ()
    return Parameter(row.name, (rows,), shape[-1], row, range(1), range(1), tensor)
