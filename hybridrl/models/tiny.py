"""Makes small models with random weights and a tokenizer without merges.

Each function writes a complete folder in Hugging Face format. Equal seeds give equal models.
"""

import string
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from hybridrl.errors import ModelError
from hybridrl.models import spec
from hybridrl.models.folder import write_json, write_once
from hybridrl.models.fused_experts import fused
from hybridrl.models.spec import ModelSpec
from hybridrl.models.table import Parameter, is_norm

ARITHMETIC = string.digits + "+-="

LOOKUP = string.digits + "?[]"

_MOVES = "pb"
KUHN_POKER = f"JQK:{_MOVES}"

_SPECIAL = ("<eos>", "<pad>", "<unk>")

_CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

_EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_MODEL_TYPES = {
    "llama": ("LlamaForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {"use_sliding_window": False}),
    "qwen3": ("Qwen3ForCausalLM", {"use_sliding_window": False, "attention_bias": False}),
    "olmo2": ("Olmo2ForCausalLM", {"attention_bias": False}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {"attention_bias": False, "norm_topk_prob": True, **_EXPERTS}),
}

_RANDOM_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "vocab_size": 263,  # It is odd, so that padding of the vocabulary is exercised.
}


def qwen3_arithmetic(folder: Path, seed: int) -> None:
    """Write an untrained Qwen3 model of 0.4 M weights with a tokenizer for arithmetic.

    The sizes divide over two tensor-parallel ranks. Every character of ARITHMETIC is a token. There is no
    chat template.
    """
    _arithmetic("qwen3", folder, seed)


def qwen3_lookup(folder: Path, seed: int) -> None:
    """Write a model like qwen3_arithmetic whose tokens are the characters of LOOKUP."""
    _arithmetic("qwen3", folder, seed, alphabet=LOOKUP)


def qwen3_kuhn_poker(folder: Path, seed: int) -> None:
    """Write a model like qwen3_arithmetic whose tokens are the characters of KUHN_POKER. A move ends an
    answer, so that an answer is one token."""
    _arithmetic("qwen3", folder, seed, alphabet=KUHN_POKER, ends=_MOVES)


def qwen3_moe_arithmetic(folder: Path, seed: int) -> None:
    """Write a model like qwen3_arithmetic with 8 experts per layer, 2 per token: 1.3 M weights."""
    _arithmetic("qwen3_moe", folder, seed, moe_intermediate_size=192)


def olmo2_arithmetic(folder: Path, seed: int) -> None:
    """Write a model like qwen3_arithmetic of a kind without a model table."""
    _arithmetic("olmo2", folder, seed)


def _arithmetic(
    family: str, folder: Path, seed: int, *, alphabet: str = ARITHMETIC, ends: str = "", **sizes: int
) -> None:
    """
    Args:
        ends: characters that end an answer, as the end token does.
    """
    sizes = {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 384,
        "vocab_size": len(alphabet) + len(_SPECIAL),
        **sizes,
    }
    config = _config(family, sizes, tied=False, eos_token_id=len(alphabet))
    tokenizer = character_tokenizer(alphabet, _SPECIAL)
    ids = tuple(map(alphabet.index, ends))
    fill = partial(fill_folder, config=config, tokenizer=tokenizer, chat_template=None, seed=seed, ends=ids)
    write_once(folder, partial(fill, std=0.05, norm_std=0.0))


def random_model(folder: Path, family: str, seed: int, *, tied: bool = False, **sizes: int) -> None:
    """Write a very small model of any family, for comparisons between programs.

    Norms and biases are random too, so that a misplaced weight changes the output. Every byte is a token, and
    there is a chat template.

    Args:
        sizes: config.json keys that replace those of _RANDOM_SIZES.

    Raises:
        ModelError: the family or size is unknown, or the tokenizer has more tokens than the vocabulary.
    """
    if family not in _MODEL_TYPES:
        raise ModelError(f"no random model of family {family!r}", fix=f"use one of {', '.join(_MODEL_TYPES)}")
    if unknown := sizes.keys() - _RANDOM_SIZES.keys():
        raise ModelError(f"no size {', '.join(unknown)}", fix=f"sizes are {', '.join(_RANDOM_SIZES)}")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = character_tokenizer(alphabet, _SPECIAL + _ROLES)
    # Bytes instead of characters: AutoTokenizer always treats a Qwen2 tokenizer as byte-level.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = _config(family, _RANDOM_SIZES | sizes, tied=tied, eos_token_id=len(alphabet))
    if config["vocab_size"] < tokenizer.get_vocab_size():
        raise ModelError(
            f"vocab_size = {config['vocab_size']}, the tokenizer has {tokenizer.get_vocab_size()} tokens"
        )
    write_once(
        folder,
        partial(
            fill_folder,
            config=config,
            tokenizer=tokenizer,
            chat_template=_CHAT_TEMPLATE,
            seed=seed,
            std=0.1,
            norm_std=0.2,
        ),
    )


def _config(family: str, sizes: Mapping[str, int], *, tied: bool, eos_token_id: int) -> dict[str, Any]:
    architecture, switches = _MODEL_TYPES[family]
    return {
        "architectures": [architecture],
        "model_type": family,
        **switches,
        **sizes,
        "hidden_act": "silu",
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": tied,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": eos_token_id + 1,
        "dtype": "float32",
    }


def character_tokenizer(alphabet: Sequence[str], special: Sequence[str]) -> Tokenizer:
    """A tokenizer whose tokens are the characters of the alphabet, then the special tokens."""
    tokens = {token: i for i, token in enumerate([*alphabet, *special])}
    # Byte-pair encoding without merges has one token per character.
    tokenizer = Tokenizer(BPE(vocab=tokens, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


def fill_folder(
    folder: Path,
    *,
    config: dict[str, Any],
    tokenizer: Tokenizer,
    chat_template: str | None,
    seed: int,
    std: float,
    norm_std: float,
    ends: tuple[int, ...] = (),
) -> None:
    """Write config, tokenizer and random weights into an empty folder.

    Args:
        std: standard deviation of matrices.
        norm_std: that of norms and biases.
        ends: tokens that end an answer, besides eos_token_id of the config.
    """
    write_json(folder / "config.json", config)
    eos, pad = config["eos_token_id"], config["pad_token_id"]
    stops = {"eos_token_id": [eos, *ends] if ends else eos, "pad_token_id": pad}
    write_json(folder / "generation_config.json", stops)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(config, chat_template))
    tensors = _random_tensors(spec.read(folder), np.random.default_rng(seed), std=std, norm_std=norm_std)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _tokenizer_config(config: Mapping[str, Any], chat_template: str | None) -> dict[str, Any]:
    names = dict(zip(("eos_token", "pad_token", "unk_token"), _SPECIAL, strict=True))
    template = {} if chat_template is None else {"chat_template": chat_template}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.get("text_config", config)["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        **names,
        **template,
    }


def _random_tensors(
    model: ModelSpec, rng: np.random.Generator, *, std: float, norm_std: float
) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint. Matrices and biases have mean 0, norm weights mean 1."""
    tensors: dict[str, np.ndarray] = {}
    for parameter in spec.parameters(model):
        scale, centre = _distribution(parameter, std, norm_std)
        for name, rows in parameter.checkpoint_tensors():
            noise = rng.standard_normal(_shape(parameter, rows), np.float32)
            tensors[name] = noise * np.float32(scale) + np.float32(centre)
    return fused(tensors, model, np.empty)


def _shape(parameter: Parameter, rows: int) -> tuple[int, ...]:
    return parameter.shape or ((rows,) if parameter.cols is None else (rows, parameter.cols))


def _distribution(parameter: Parameter, std: float, norm_std: float) -> tuple[float, float]:
    """(standard deviation, mean) of a parameter's values."""
    if parameter.cols is not None:
        return std, 0.0
    return norm_std, 1.0 if is_norm(parameter) else 0.0
