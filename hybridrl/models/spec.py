"""The spec of a model, read from its config.json: sizes, switches, and the canonical parameters."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from hybridrl import registry
from hybridrl.errors import ModelError
from hybridrl.models import families, untabled, vision
from hybridrl.models.config_json import (
    read_config,
    refuse_contradictions,
    refuse_other_types,
    rope,
    with_defaults,
)
from hybridrl.models.families._dense import VALUE_HEAD
from hybridrl.models.table import Family, Kind, Parameter, Row
from hybridrl.models.unsupported import refuse_quantised, refuse_unknown_tower, refuse_unsupported
from hybridrl.models.untabled import TensorShape
from hybridrl.models.vision import VisionSpec

_CLASSIFICATION = "ForSequenceClassification"
"""Suffix of the architecture name of a transformers model with a classification head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Sizes and switches of a decoder-only transformer."""

    family: str
    """File name in models/families; for a model without a table, transformers' model_type."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    """Rows of the embedding in the checkpoint, without padding."""

    tied: bool
    """Whether the output layer uses the embedding's weight."""

    qkv_bias: bool
    attention_out_bias: bool
    qk_norm: bool
    """Whether q and k have an RMS norm over the head dimension, before the rotary embedding."""

    norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None = field(default=None, hash=False)
    """Rotary scaling as in config.json, with its kind under "rope_type"; None: plain rotary embedding."""

    max_positions: int
    dtype: str
    """Dtype of the checkpoint: "float32", "bfloat16" or "float16"."""

    head: Literal["vocabulary", "value", "none"] = "vocabulary"
    """Kind of output layer. value: a single output, as in a reward model or critic. Only a model with a
    vocabulary can be tied."""

    num_experts: int = 0
    """Number of experts in a layer with experts, without shared ones; 0: no layer has experts."""

    experts_per_token: int = 0
    expert_ffn_size: int = 0
    shared_ffn_size: int = 0
    """Columns of all shared experts together; 0: there are none."""

    first_moe_layer: int = 0
    """First layer with experts; layers before it have a dense feed-forward."""

    router_bias: bool = False
    """Whether the router has a bias, which affects only the choice of experts and not their weights."""

    router_score: Literal["softmax", "sigmoid"] = "softmax"
    """Function that turns the router's output into scores."""

    router_normalizes: bool = False
    """Whether the scores of a token's experts are divided by their sum."""

    router_scale: float = 1.0
    """Factor applied to the router scores after normalisation."""

    router_groups: int = 1
    """Number of equal groups of neighbouring experts. A token can only choose experts from its best
    `router_top_groups` groups."""

    router_top_groups: int = 1

    q_lora_rank: int = 0
    """Rank of the compressed queries in latent attention (MLA); 0: queries are not compressed."""

    kv_lora_rank: int = 0
    """Rank of the compressed keys and values in latent attention; 0: attention is not latent."""

    rope_head_dim: int = 0
    nope_head_dim: int = 0
    v_head_dim: int = 0

    query_scale: float | None = None
    """Factor of the products of queries and keys; None: 1 / sqrt(head_dim)."""

    attention_soft_cap: float | None = None
    """Soft cap: these products x become cap * tanh(x / cap); None: they stay unchanged."""

    output_soft_cap: float | None = None
    """Soft cap of the logits; None: they stay unchanged."""

    window: int | None = None
    """Window of the windowed layers: a token attends to itself and the window - 1 tokens before it."""

    windowed_layers: tuple[int, ...] = ()
    window_rope_theta: float | None = None
    """Rotary base of the windowed layers, without scaling; None: the same as on the other layers."""

    scaled_embedding: bool = False
    """Whether the embedding is multiplied by sqrt(hidden_size)."""

    centred_norms: bool = False
    """Whether norms store their weight minus 1."""

    post_norms: bool = False
    """Whether attention and feed-forward are also followed by a norm."""

    rope_sections: tuple[int, ...] = ()
    """Pairs of dims of a head that turn with time, height and width of a picture's tokens; (): every pair
    turns with the position."""

    rope_interleaved: bool = False
    """Whether these pairs alternate. If not, they are contiguous."""

    vision: VisionSpec | None = None
    """The part that reads pictures; None: the model reads text only."""

    tensors: tuple[TensorShape, ...] = ()
    """The tensors of the checkpoint of a model without a table, in the order of transformers' modules; ():
    the model has a table. Without one, a model has its sizes here, and no switches."""

    @property
    def has_table(self) -> bool:
        return not self.tensors

    @property
    def untied(self) -> bool:
        return self.head == "vocabulary" and not self.tied

    @property
    def value_head(self) -> bool:
        return self.head == "value"

    @property
    def compressed_q(self) -> bool:
        return self.q_lora_rank > 0

    @property
    def plain_q(self) -> bool:
        return self.q_lora_rank == 0

    @property
    def shared_experts(self) -> bool:
        return self.shared_ffn_size > 0

    @property
    def latent(self) -> bool:
        """Whether the model has multi-head latent attention."""
        return self.kv_lora_rank > 0

    @property
    def rotary_dim(self) -> int:
        """Number of dimensions per head with rotary embedding."""
        return self.rope_head_dim if self.latent else self.head_dim

    @property
    def kv_cache_size(self) -> int:
        """Numbers per token in an engine's KV cache, over all layers."""
        if self.latent:
            return self.num_layers * (self.kv_lora_rank + self.rope_head_dim)
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def heads_divide(self, tp: int) -> bool:
        """Whether tp divides the heads: every rank has whole heads, or kv heads are replicated evenly."""
        kv_heads = self.latent or self.num_kv_heads % tp == 0 or tp % self.num_kv_heads == 0
        return self.num_heads % tp == 0 and kv_heads

    @property
    def ffn_sizes(self) -> list[int]:
        """Feed-forward sizes that every token passes: of dense layers, and of shared experts."""
        plain = [self.ffn_size] if self.layers("dense") else []
        return plain + ([self.shared_ffn_size] if self.shared_experts else [])

    def ffn_divides(self, tp: int) -> bool:
        return all(size % tp == 0 for size in self.ffn_sizes)

    def layers(self, kind: Kind = "every") -> range:
        """Range of the layers of a kind."""
        first_moe = self.first_moe_layer if self.num_experts else self.num_layers
        if kind == "every":
            return range(self.num_layers)
        return range(first_moe) if kind == "dense" else range(first_moe, self.num_layers)

    @property
    def sizes(self) -> dict[str, int]:
        """The number for each size word of a model table."""
        return {
            "vocab": self.vocab_size,
            "hidden": self.hidden_size,
            "ffn": self.ffn_size,
            "q": self.num_heads * self.head_dim,
            "kv": self.num_kv_heads * self.head_dim,
            "head": self.head_dim,
            "experts": self.num_experts,
            "expert_ffn": self.expert_ffn_size,
            "shared_ffn": self.shared_ffn_size,
            "q_lora": self.q_lora_rank,
            "kv_lora": self.kv_lora_rank,
            "kv_lora_rope": self.kv_lora_rank + self.rope_head_dim,
            "mla_q": self.num_heads * (self.nope_head_dim + self.rope_head_dim),
            "mla_kv": self.num_heads * (self.nope_head_dim + self.v_head_dim),
            "mla_out": self.num_heads * self.v_head_dim,
            "value": 1,
        }


def read(folder: str | Path) -> ModelSpec:
    """The spec of a model folder in Hugging Face format.

    Raises:
        ModelError: config.json or one of its keys is missing, a value has another type or contradicts
            another, neither a table nor transformers describes the architecture, or the model has a feature
            that its table does not cover (quantised weights, another activation, experts on only some of the
            layers).
    """
    path = Path(folder) / "config.json"
    return from_config(read_config(folder), where=str(path))


def from_config(config: Mapping[str, Any], *, where: str) -> ModelSpec:
    """The spec of a model, from the content of its config.json.

    Args:
        where: where the config comes from, for errors.

    Raises:
        ModelError: as read(), except for a missing file.
    """
    refuse_other_types(config, where)
    if _reads_pictures(config):
        refuse_other_types(vision.text_config(config), where)
    refuse_quantised(config, where)
    found = _without_table(config, where) if _family(config) is None else _by_table(config, where)
    return without_vocabulary(found, head="value") if _scores(config, where) else found


def _without_table(config: Mapping[str, Any], where: str) -> ModelSpec:
    refuse_unknown_tower(config, _causal(config), where)
    known = ", ".join(family.architecture for family in _families().values())
    fields = untabled.read_fields(config, _causal(config), where=where, known=known)
    return ModelSpec(**fields, dtype=_dtype(config))


def _by_table(config: Mapping[str, Any], where: str) -> ModelSpec:
    name = _family(config)
    assert name is not None, "the model has a table"
    family, tower = _families()[name], None
    if family.tower is not None:
        seen = family.tower
        tower = vision.read_vision(config, seen.defaults, mean=seen.mean, std=seen.std, where=where)
        config = vision.text_config(config)
    refuse_unsupported(config, family, where)
    config = with_defaults(config, family.defaults)
    theta, scaling = rope(config)
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
            "dtype": _dtype(config),
            "vision": tower,
            **family.traits(config),
        }
    except KeyError as error:
        raise ModelError(f"config.json has no {error.args[0]!r}", where=where, fix="add it") from error
    refuse_contradictions(fields, where)
    return ModelSpec(**fields)


def _dtype(config: Mapping[str, Any]) -> str:
    return config.get("dtype") or config.get("torch_dtype") or "float32"


def without_vocabulary(spec: ModelSpec, *, head: Literal["value", "none"]) -> ModelSpec:
    """The same model with a value head or with no head."""
    return replace(spec, tied=False, head=head)


def parameters(spec: ModelSpec) -> tuple[Parameter, ...]:
    """The canonical parameters of a model, in the order of its family's table, or of its tensors."""
    if not spec.has_table:
        return tuple(untabled.parameters(spec.tensors, spec.head))
    rows = [row for row in (*family_of(spec).rows, VALUE_HEAD) if not row.when or getattr(spec, row.when)]
    tower = family_of(spec).tower
    seen = tower.parameters(spec.vision) if tower and spec.vision else ()
    return tuple(p for p in (*(_parameter(spec, row) for row in rows), *seen) if p.layers)


def family_of(spec: ModelSpec) -> Family:
    """The model table of a model that has one."""
    return _families()[spec.family]


def count(spec: ModelSpec) -> int:
    """Number of weights. A tied output layer is not counted again."""
    return sum(parameter.num_elements for parameter in parameters(spec))


def _parameter(spec: ModelSpec, row: Row) -> Parameter:
    sizes = spec.sizes
    return Parameter(
        name=row.name,
        blocks=tuple(sizes[word] for word in row.rows),
        cols=None if row.cols is None else sizes[row.cols],
        row=row,
        layers=spec.layers(row.kind) if row.stage == "layers" else range(1),
        experts=range(spec.num_experts) if row.per_expert else range(1),
    )


@cache
def _families() -> dict[str, Family]:
    names = registry.names(families.__name__)
    return {name: importlib.import_module(f"{families.__name__}.{name}").FAMILY for name in names}


def _family(config: Mapping[str, Any]) -> str | None:
    """The name of the family's table; None: there is none."""
    named = _causal(config)
    return next((name for name, family in _families().items() if family.architecture == named), None)


def _reads_pictures(config: Mapping[str, Any]) -> bool:
    name = _family(config)
    return name is not None and _families()[name].tower is not None


def _causal(config: Mapping[str, Any]) -> str:
    """The architecture of the same model with an output layer."""
    return _architecture(config).replace(_CLASSIFICATION, "ForCausalLM")


def _architecture(config: Mapping[str, Any]) -> str:
    return (config.get("architectures") or ["none"])[0]


def with_one_label(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the same model with a value head, as transformers expects it."""
    name = _architecture(config).replace("ForCausalLM", _CLASSIFICATION)
    return {**config, "architectures": [name], "id2label": {"0": "reward"}, "label2id": {"reward": 0}}


def _scores(config: Mapping[str, Any], where: str) -> bool:
    """Whether the model has a value head instead of a vocabulary.

    Raises:
        ModelError: its head has more than one label.
    """
    if not _architecture(config).endswith(_CLASSIFICATION):
        return False
    labels = len(config.get("id2label", ("LABEL_0", "LABEL_1")))  # transformers' default.
    if labels != 1:
        raise ModelError(
            f"a model with {labels} labels is no reward model", where=where, fix="use one with num_labels = 1"
        )
    return True
