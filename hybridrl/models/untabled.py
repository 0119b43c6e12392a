"""Describes models without a table: transformers' own modules say which tensors they have.

A canonical parameter of such a model is one tensor of its checkpoint. Torch and transformers are imported
only for such a model; no weight is made or read.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

from hybridrl.errors import ModelError
from hybridrl.models.config_json import rope
from hybridrl.models.families._dense import VALUE_HEAD
from hybridrl.models.table import Group, Parameter, Row, Site, Stage

OUTPUT = "lm_head.weight"


class TensorShape(NamedTuple):
    """A tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]


def read_fields(config: Mapping[str, Any], architecture: str, *, where: str, known: str) -> dict[str, Any]:
    """The fields of ModelSpec for a model without a table.

    Args:
        architecture: of the model with an output layer, as config.json names it.
        known: the architectures that have a table, for the error.

    Raises:
        ModelError: transformers has no such causal language model, or it has tensors that cannot be sharded
            by rows.
    """

    def refused(why: str) -> ModelError:
        what = f"no model table for architecture {architecture}, and {why}"
        return ModelError(what, where=where, fix=f"use one of {known}")

    try:
        found = _describe(json.dumps(dict(config), sort_keys=True), architecture)
    except (ValueError, TypeError, AttributeError, KeyError, ImportError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise refused(f"transformers cannot build it from its config.json: {reason}") from error
    if isinstance(found, str):
        raise refused(found)
    return found


def parameters(
    tensors: Iterable[TensorShape], head: Literal["vocabulary", "value", "none"]
) -> Iterator[Parameter]:
    """The canonical parameters, in the order of the modules. The layers that have equal tensors share one."""
    before_layers = True
    layers: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for name, shape in tensors:
        pattern, layer = _pattern(name)
        layers.setdefault((pattern, shape), []).append(layer)
    for (pattern, shape), numbers in layers.items():
        per_layer = "*" in pattern
        before_layers &= not per_layer
        if pattern == OUTPUT and head != "vocabulary":
            continue
        stage: Stage = "layers" if per_layer else "first" if before_layers else "last"
        for run in _runs(numbers):
            yield _parameter(pattern, shape, stage, run)
    if head == "value":
        hidden = next(shape[-1] for (_, shape) in layers if len(shape) == 2)
        yield Parameter(VALUE_HEAD.name, (1,), hidden, VALUE_HEAD, range(1), range(1))


def _parameter(pattern: str, shape: tuple[int, ...], stage: Stage, layers: range) -> Parameter:
    site = (Site(pattern, "whole", (0,)),)
    group: Group = "head" if pattern == OUTPUT else "ffn"
    row = Row(name=pattern, rows=(), hf=(pattern,), megatron=site, engine=site, stage=stage, group=group)
    cols = shape[1] if len(shape) == 2 else None
    return Parameter(pattern, shape[:1], cols, row, layers, range(1))


@cache
def _describe(config: str, architecture: str) -> dict[str, Any] | str:
    """The fields, or why there are none."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = json.loads(config)
    kind = values.pop("model_type", None)
    if kind is None:
        return "config.json has no model_type by which transformers would know it"
    read = AutoConfig.for_model(kind, **values)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(read, dtype=torch.float32)
    if type(model).__name__ != architecture:
        return f"transformers' {kind} is a {type(model).__name__}"
    shapes = [TensorShape(name, tuple(p.shape)) for name, p in model.named_parameters()]
    if why := _refusal(model, shapes):
        return why
    return _sizes(read, kind, shapes)


def _refusal(model: Any, tensors: Iterable[TensorShape]) -> str | None:
    output = model.get_output_embeddings()
    if output is not getattr(model, "lm_head", None) or output.bias is not None:
        return "its output layer is not lm_head without a bias, which a model without a table needs"
    deep = [name for name, shape in tensors if len(shape) not in (1, 2)]
    if deep:
        return f"{deep[0]} is neither a matrix nor a vector, as a model without a table needs"
    return None


def _sizes(config: Any, kind: str, tensors: list[TensorShape]) -> dict[str, Any]:
    """Sizes as transformers reads them, whatever config.json calls them."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    theta, scaling = rope(config.to_dict())
    return {
        "family": kind,
        "hidden_size": hidden,
        "num_layers": config.num_hidden_layers,
        "num_heads": heads,
        "num_kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or hidden // heads,
        "ffn_size": getattr(config, "intermediate_size", None) or 4 * hidden,
        "vocab_size": config.vocab_size,
        "tied": not any(tensor.name == OUTPUT for tensor in tensors),
        "qkv_bias": False,
        "attention_out_bias": False,
        "qk_norm": False,
        "norm_eps": getattr(config, "rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "max_positions": config.max_position_embeddings,
        "tensors": tuple(tensors),
    }


def _pattern(name: str) -> tuple[str, int]:
    """The name with * in place of the layer, and the layer; 0 outside of the layers."""
    found = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", name)
    if found is None:
        return name, 0
    return f"{name[: found.start(1)]}*{name[found.end(1) :]}", int(found[1])


def _runs(numbers: Iterable[int]) -> Iterator[range]:
    """Neighbouring numbers together; they are in order."""
    start = stop = None
    for number in numbers:
        if number != stop:
            if start is not None and stop is not None:
                yield range(start, stop)
            start = number
        stop = number + 1
    if start is not None and stop is not None:
        yield range(start, stop)
