"""A host of a vLLM whose loader puts gate where up is expected, as another release might.

It runs in vLLM's environment.
"""

# pyright: reportMissingImports=false

from collections.abc import Iterable, Iterator
from typing import Any

from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from hybridrl.rollout.vllm import host

_OTHER = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
_load = Qwen3ForCausalLM.load_weights


def _load_weights(self: Any, weights: Iterable[tuple[str, Any]]) -> Any:
    return _load(self, _exchanged(weights))


def _exchanged(weights: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name, tensor in weights:
        module = name.split(".")[-2]
        yield name.replace(module, _OTHER.get(module, module)), tensor


def main(file_descriptor: int) -> None:
    Qwen3ForCausalLM.load_weights = _load_weights
    host.main(file_descriptor)
