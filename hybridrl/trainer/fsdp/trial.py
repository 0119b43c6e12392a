"""Tries whether a model without a table computes the same in one packed pass as in transformers.

Soft caps, factors of the logits, windows, states that pass from token to token: what the packed pass does not
know of shows in the log-probabilities of a small model of the same kind, with random weights, on this CPU.
Shape letters: V vocabulary, L tokens of one sequence.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from hybridrl.batch import RankBatch, TokenBlock
from hybridrl.errors import ModelError
from hybridrl.models.shrink import small
from hybridrl.trainer.fsdp.network import PackedNetwork, make_buffers
from hybridrl.trainer.packing import PackedBatch
from hybridrl.trainer.places import Microbatch, TokenPartition

LENGTHS = (3, 12, 12, 19)
"""Tokens of each sequence that is tried; some are longer than the window of a small model."""

MOST = 1e-4
"""Largest difference of two log-probabilities in fp32: rounding makes 1e-6 of it."""

_FIX = "train a model that has a table (docs/fsdp.md lists them), or write a table: docs/extend_model.md"


def refuse_other_function(config: Mapping[str, Any], *, where: str) -> None:
    """
    Args:
        config: config.json of the model.

    Raises:
        ModelError: a small model of this kind cannot be built or packed, or differs from transformers.
    """
    kind = (config.get("architectures") or ["this model"])[0]
    try:
        off = difference(config)
    except ModelError as error:
        raise ModelError(error.what, where=where, fix=_FIX) from error
    except Exception as error:  # transformers' own code, which may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"transformers' {kind} does not compute packed sequences: {reason}", where=where, fix=_FIX
        ) from error
    if not off <= MOST:
        raise ModelError(
            f"several sequences in one pass of transformers' layers are not what its {kind} computes: "
            f"log-probabilities of a small one are {off:.2g} off, at most {MOST:g} is rounding",
            where=where,
            fix=_FIX,
        )


def difference(config: Mapping[str, Any]) -> float:
    """Largest difference of a log-probability between the packed pass and transformers, on a small model."""
    return _difference(json.dumps(dict(config), sort_keys=True))


@cache
def _difference(config: str) -> float:
    with _unchanged_random_state(), tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(_shrunk(json.loads(config))))
        read = AutoConfig.from_pretrained(folder)
        whole = AutoModelForCausalLM.from_config(
            read, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        _fill(whole)
        with torch.no_grad():
            packed = _packed(Path(folder), whole)
            alone = torch.cat([_alone(whole, sequence) for sequence in _sequences(read.vocab_size)])
        return float((packed - alone).abs().max())


def _shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a small model; keys have the names that transformers' class of it has."""
    values = dict(config)
    kind = values.pop("model_type")
    read = AutoConfig.for_model(kind, **values)
    own = dict(read.attribute_map)
    standard = {name: usual for usual, name in own.items()}
    every = {standard.get(key, key): value for key, value in read.to_dict().items()}
    return {own.get(key, key): value for key, value in small(every).items()} | {"model_type": kind}


def _fill(model: nn.Module) -> None:
    """Values that are large enough for every weight to change the output."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.dim() > 1:
            parameter.data = noise * 0.5 / parameter.shape[-1] ** 0.5
        else:
            parameter.data = 0.2 * noise + (1.0 if "norm" in name else 0.0)


def _sequences(vocab_size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocab_size, length + 1).astype(np.int32) for length in LENGTHS]


def _packed(folder: Path, whole: Any) -> Tensor:
    """Log-probabilities of all tokens but the first of each sequence, from one pass over all."""
    tied = whole.lm_head.weight is whole.get_input_embeddings().weight
    network = PackedNetwork(folder, tied=tied, value_head=False, dtype=torch.float32).train()
    make_buffers(network.body, torch.device("cpu"))
    network.load_state_dict(whole.state_dict(), strict=False)
    given = dict(whole.named_parameters())
    if strange := given.keys() ^ dict(network.named_parameters()).keys():
        raise ModelError(
            f"{type(whole).__name__} has other tensors than its layers: {', '.join(sorted(strange))}"
        )
    assert network.layers, "a layer is gathered at a time"
    microbatch = _microbatch(_sequences(whole.config.vocab_size))
    logp = network.logits(network(microbatch)).log_softmax(-1)
    return logp.gather(1, microbatch.target_O.unsqueeze(1)).squeeze(1)


def _alone(whole: Any, sequence: np.ndarray) -> Tensor:
    """Log-probabilities of all tokens of a sequence but the first, from transformers alone."""
    token_L = torch.from_numpy(sequence).long()
    logits_LV = whole(token_L[None, :-1], use_cache=False).logits[0]
    return logits_LV.log_softmax(-1).gather(1, token_L[1:, None]).squeeze(1)


def _microbatch(sequences: list[np.ndarray]) -> Microbatch:
    """All sequences in one, of which everything after the first token of each is predicted."""
    prompts = [sequence[:1].tolist() for sequence in sequences]
    answers = [sequence[1:].tolist() for sequence in sequences]
    block = TokenBlock.from_answers(prompts, answers, [[0.0] * len(answer) for answer in answers], 0)
    index = np.arange(len(sequences))
    batch = RankBatch(
        step=0,
        blocks=(block,),
        block_N=np.zeros_like(index),
        row_N=index,
        group_N=index,
        reward_N=np.zeros(len(index), np.float32),
        advantage_N=None,
    )
    found = PackedBatch(batch, torch.device("cpu"), TokenPartition()).microbatch(index.tolist())
    assert found is not None, "tokens are trained on"
    return found


@contextlib.contextmanager
def _unchanged_random_state() -> Iterator[None]:
    """The same weights at every trial; the state of torch's generator is what it was, afterwards."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(state)
