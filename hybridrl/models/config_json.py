"""Reads config.json: refuses values of another type, and fills in the defaults of the architecture.

A key that is absent has the default with which transformers reads the architecture. For most keys null means
the same; for those of _NULLABLE it means something of its own, as in num_key_value_heads: as many as heads.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hybridrl.errors import ModelError
from hybridrl.models.foreign import recognise
from hybridrl.wording import json_fault

_Check = tuple[Callable[[Any], bool], str]


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value and math.isfinite(value)
    )


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _is_list_of_layers(value: Any) -> bool:
    return isinstance(value, list) and all(_is_whole(entry, 0) for entry in value)


_SIZE: _Check = (lambda value: _is_whole(value, 1), "a whole number above 0")
_COUNT: _Check = (lambda value: _is_whole(value, 0), "a whole number, 0 or more")
_NUMBER: _Check = (_is_number, "a number above 0")
_SWITCH: _Check = (lambda value: isinstance(value, bool), "true or false")
_TEXT: _Check = (lambda value: isinstance(value, str), "text")
_OBJECT: _Check = (lambda value: isinstance(value, dict), "an object")
_DTYPES = ("float32", "bfloat16", "float16")
_DTYPE: _Check = (lambda value: value in _DTYPES, f"one of {', '.join(_DTYPES)}")

_KINDS: Mapping[str, _Check] = {
    **dict.fromkeys(
        (
            "hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
            "intermediate_size vocab_size max_position_embeddings num_experts num_local_experts "
            "n_routed_experts num_experts_per_tok moe_intermediate_size kv_lora_rank qk_rope_head_dim "
            "qk_nope_head_dim v_head_dim sliding_window sliding_window_pattern n_group topk_group "
            "decoder_sparse_step"
        ).split(),
        _SIZE,
    ),
    **dict.fromkeys(
        "first_k_dense_replace n_shared_experts q_lora_rank num_nextn_predict_layers".split(), _COUNT
    ),
    **dict.fromkeys(
        (
            "rms_norm_eps rope_theta rope_local_base_freq routed_scaling_factor query_pre_attn_scalar "
            "attn_logit_softcapping final_logit_softcapping"
        ).split(),
        _NUMBER,
    ),
    **dict.fromkeys(
        (
            "tie_word_embeddings attention_bias mlp_bias use_sliding_window norm_topk_prob rope_interleave "
            "use_bidirectional_attention"
        ).split(),
        _SWITCH,
    ),
    **dict.fromkeys("hidden_act hidden_activation topk_method".split(), _TEXT),
    **dict.fromkeys("dtype torch_dtype".split(), _DTYPE),
    **dict.fromkeys("rope_scaling rope_parameters quantization_config id2label".split(), _OBJECT),
    **dict.fromkeys("architectures layer_types".split(), (_is_list_of_text, "a list of texts")),
    "mlp_only_layers": (_is_list_of_layers, "a list of layers"),
}

_ROPE_KINDS: Mapping[str, _Check] = {
    "rope_theta": _NUMBER,
    **dict.fromkeys("rope_type type".split(), _TEXT),
    **dict.fromkeys("full_attention sliding_attention".split(), _OBJECT),
}
"""Keys inside rope_parameters and rope_scaling."""

_NULLABLE = frozenset(
    (
        "num_key_value_heads q_lora_rank sliding_window attn_logit_softcapping final_logit_softcapping "
        "n_shared_experts n_group topk_group"
    ).split()
)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The content of a model folder's config.json.

    Raises:
        ModelError: there is none, or it is not JSON, or not an object. A checkpoint of another trainer is
            named, with what converts it.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        if foreign := recognise(path.parent):
            raise ModelError(
                f"{path.parent} is {foreign.kind}, not a model in Hugging Face format",
                where=str(path.parent),
                fix=foreign.converter,
            )
        raise ModelError(
            f"no config.json in {path.parent}",
            where=str(path.parent),
            fix="give a folder in Hugging Face format",
        )
    return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds one object.

    Raises:
        ModelError: it is not JSON, or not an object.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{path.name} is not JSON: {json_fault(error)}", where=str(path), fix="download the model again"
        ) from error
    if not isinstance(found, dict):
        raise ModelError(
            f"{path.name} is {_shown(found)}, not an object with keys",
            where=str(path),
            fix="download the model again",
        )
    return found


def refuse_other_types(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config.json in which a key that a model table reads has a value of another type.

    Raises:
        ModelError: names the key, its value, and what it takes.
    """
    _refuse_others(config, _KINDS, "", where)
    for key in ("rope_parameters", "rope_scaling"):
        rope = config.get(key) or {}
        _refuse_others(rope, _ROPE_KINDS, f"{key}.", where)
        for kind in ("full_attention", "sliding_attention"):
            _refuse_others(rope.get(kind) or {}, _ROPE_KINDS, f"{key}.{kind}.", where)


def _refuse_others(config: Mapping[str, Any], kinds: Mapping[str, _Check], place: str, where: str) -> None:
    for key, value in config.items():
        fits, expected = kinds.get(key, (None, ""))
        if fits is not None and value is not None and not fits(value):
            raise ModelError(
                f"{place}{key} = {_shown(value)} in config.json is not {expected}",
                where=where,
                fix=f"correct {place}{key}, or download the model again",
            )


def with_defaults(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the defaults of its architecture; a null that means nothing of its own is left out."""
    given = {key: value for key, value in config.items() if value is not None or key in _NULLABLE}
    return {**defaults, **given}


def rope(config: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Rotary base and scaling, from `rope_parameters` or, in older files, `rope_theta` and `rope_scaling`.

    A model with windows has them for each kind of attention; this returns those of full attention.
    """
    scaling = rope_options(config)
    theta = scaling.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    return float(theta), None if kind in _PLAIN_ROPE else {"rope_type": kind, **scaling}


_PLAIN_ROPE = ("default", "mrope")
"""Kinds without scaling; mrope has angles along three axes, which older files write in this place."""


def rope_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says about the rotary embedding, of full attention if each kind has its own."""
    options = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return dict(options.get("full_attention") or options)


def refuse_contradictions(fields: Mapping[str, Any], where: str) -> None:
    """Refuse sizes that contradict each other.

    Args:
        fields: those of ModelSpec.

    Raises:
        ModelError: names both keys and both values.
    """
    experts, chosen = fields.get("num_experts", 0), fields.get("experts_per_token", 0)
    groups, best = fields.get("router_groups", 1), fields.get("router_top_groups", 1)
    heads, kv_heads = fields["num_heads"], fields["num_kv_heads"]
    sections = fields.get("rope_sections")
    trials = (
        (
            heads % kv_heads == 0,
            f"num_attention_heads = {heads} is no multiple of num_key_value_heads = {kv_heads}",
        ),
        (chosen <= experts, f"num_experts_per_tok = {chosen} is more than the {experts} experts of a layer"),
        (best <= groups, f"topk_group = {best} is more than n_group = {groups}"),
        (experts % groups == 0, f"{experts} experts do not divide into n_group = {groups}"),
        (
            sections is None or sum(sections) == fields["head_dim"] // 2,
            f"mrope_section = {list(sections or ())} does not add up to half of head_dim = "
            f"{fields['head_dim']}",
        ),
        (
            fields.get("first_moe_layer", 0) <= fields["num_layers"],
            f"more dense layers than num_hidden_layers = {fields['num_layers']}",
        ),
    )
    for holds, what in trials:
        if not holds:
            raise ModelError(
                f"{what}; a key that config.json leaves out has its architecture's default",
                where=where,
                fix="correct config.json, or download the model again",
            )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:36]} ..."
