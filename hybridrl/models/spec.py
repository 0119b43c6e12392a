"""What a model is, by its config.json: sizes and switches, and the canonical parameters that follow."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hybridrl import registry
from hybridrl.errors import ModelError
from hybridrl.models import families
from hybridrl.models.table import Family, Parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer."""

    family: str
    """File name in models/families."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    """Rows of the embedding in the checkpoint, before anybody pads it."""

    tied: bool
    """The output layer uses the embedding's weight."""

    qkv_bias: bool
    attention_out_bias: bool
    qk_norm: bool
    """RMS norm over the head dimension of q and k, before the rotary embedding."""

    norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None = field(default=None, hash=False)
    """As config.json has it, with its kind under "rope_type"; None: plain rotary embedding."""

    max_positions: int
    dtype: str
    """Of the checkpoint: "float32", "bfloat16" or "float16"."""

    @property
    def untied(self) -> bool:
        return not self.tied

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers for the words of a model table."""
        return {
            "vocab": self.vocab_size,
            "hidden": self.hidden_size,
            "ffn": self.ffn_size,
            "q": self.num_heads * self.head_dim,
            "kv": self.num_kv_heads * self.head_dim,
            "head": self.head_dim,
        }


def read(folder: str | Path) -> ModelSpec:
    """The spec of a model folder in Hugging Face format.

    Raises:
        ModelError: no config.json, an architecture that no table describes, a missing key, or something that
            the tables do not cover (sliding windows, quantised weights, an activation other than SiLU).
    """
    path = Path(folder) / "config.json"
    config = _json(path)
    name, family = _family(config, path)
    _refuse_unsupported(config, path)
    theta, scaling = _rope(config)
    try:
        fields = {
            "family": name,
            "hidden_size": config["hidden_size"],
            "num_layers": config["num_hidden_layers"],
            "num_heads": config["num_attention_heads"],
            "num_kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
            "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            "ffn_size": config["intermediate_size"],
            "vocab_size": config["vocab_size"],
            "tied": config.get("tie_word_embeddings", False),
            "norm_eps": config["rms_norm_eps"],
            "rope_theta": theta,
            "rope_scaling": scaling,
            "max_positions": config["max_position_embeddings"],
            "dtype": config.get("dtype") or config.get("torch_dtype") or "float32",
        }
    except KeyError as error:
        raise ModelError(f"config.json has no {error.args[0]!r}", where=str(path), fix="add it") from error
    return ModelSpec(**(fields | family.traits(config)))


def parameters(spec: ModelSpec) -> tuple[Parameter, ...]:
    """The canonical parameters of a model, from its family's table, in the order of the table."""
    sizes = spec.sizes
    return tuple(
        Parameter(
            row.name, tuple(sizes[r] for r in row.rows), None if row.cols is None else sizes[row.cols], row
        )
        for row in _families()[spec.family].rows
        if not row.when or getattr(spec, row.when)
    )


def count(spec: ModelSpec) -> int:
    """Number of weights; a tied output layer counts once."""
    return sum(p.num_elements * (spec.num_layers if p.per_layer else 1) for p in parameters(spec))


@cache
def _families() -> dict[str, Family]:
    names = registry.names(families.__name__)
    return {name: importlib.import_module(f"{families.__name__}.{name}").FAMILY for name in names}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(
            f"no config.json in {path.parent}",
            where=str(path.parent),
            fix="give a folder in Hugging Face format",
        )
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ModelError(
            f"config.json is not JSON: {error}", where=str(path), fix="download the model again"
        ) from error


def _family(config: Mapping[str, Any], path: Path) -> tuple[str, Family]:
    named = (config.get("architectures") or ["none"])[0]
    for name, family in _families().items():
        if family.architecture == named:
            return name, family
    known = ", ".join(family.architecture for family in _families().values())
    raise ModelError(f"no model table for architecture {named}", where=str(path), fix=f"use one of {known}")


def _refuse_unsupported(config: Mapping[str, Any], path: Path) -> None:
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(
            f"hidden_act = {config['hidden_act']} is not supported",
            where=str(path),
            fix="use a model with silu",
        )
    if config.get("use_sliding_window", False):
        raise ModelError(
            "use_sliding_window = true is not supported",
            where=str(path),
            fix="use a model with full attention",
        )
    if config.get("quantization_config"):
        raise ModelError("the checkpoint is quantised", where=str(path), fix="use its bf16 or fp32 version")


def _rope(config: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling, under `rope_parameters` or, in older files, `rope_theta` and `rope_scaling`."""
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = scaling.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    return float(theta), None if kind == "default" else {"rope_type": kind, **scaling}
