"""The least time of the phases of a step on a machine: operations over its peak, bytes over its bandwidth.

Generation reads all weights that a token is multiplied by, once for each token of the longest answer, and
computes each prompt once. Training multiplies each token once forward and twice backward, the output layer
for response tokens alone, and Adam reads weights, gradients and two moments and writes all but the gradients.
A weight update reads and writes every weight once.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from hybridrl.bench.flops import data_sheet, matmul_flops, read_bytes_s
from hybridrl.estimate.flops import active_weights, attention, output_layer
from hybridrl.hosts.machine import Machine
from hybridrl.models.spec import ModelSpec, count

_ADAM_PASSES = 7
"""Reads of weight, gradient and two moments; writes of weight and two moments; all in fp32."""


class Speeds(NamedTuple):
    """What all devices of a machine do together."""

    flops: float
    """Operations a second: bf16 on GPUs, fp32 on a CPU."""

    bytes_s: float
    weight_bytes: int
    """Bytes of a weight that engines and forward passes read."""


def speeds_here() -> Speeds | None:
    """The speeds of GPUs by their data sheet, None if it is not known; those of a CPU as measured, with all
    cores, in about a second."""
    machine = Machine.here()
    if machine.gpus:
        gpu = data_sheet(machine.gpus[0])
        count = len(machine.gpus)
        return None if gpu is None else Speeds(gpu.flops * count, gpu.hbm_bytes_s * count, 2)
    before = torch.get_num_threads()
    torch.set_num_threads(machine.cores)
    try:
        return Speeds(matmul_flops(machine.cores), read_bytes_s(), 4)
    finally:
        torch.set_num_threads(before)


def bounds(
    model: ModelSpec, step: Mapping[str, float], here: Speeds, *, prompts: int, updates: int, epochs: int
) -> dict[str, float]:
    """Seconds that generation, training and weight update need at least.

    Args:
        step: tokens, mean and longest response tokens, and answers of a step.
        prompts: different prompts among the answers.
        updates: optimizer steps.
        epochs: times that each answer is trained on.
    """
    responses = step["response_tokens"] * step["answers"]
    prompt_tokens = (step["tokens"] - responses) / step["answers"]
    length = step["tokens"] / step["answers"]
    layers, output = 2.0 * active_weights(model), output_layer(model)
    attended = attention(model, length / 2)
    prefill = prompts * prompt_tokens * (layers + attention(model, prompt_tokens / 2))
    decode_s = max(
        step["longest_response"] * read_weights(model) * here.weight_bytes / here.bytes_s,
        responses * (layers + output + attended) / here.flops,
    )
    train = 3.0 * epochs * (step["tokens"] * (layers + attended) + responses * output)
    weights = count(model)
    return {
        "gen_s": prefill / here.flops + decode_s,
        "train_s": train / here.flops + updates * _ADAM_PASSES * 4 * weights / here.bytes_s,
        "update_weights_s": 2 * weights * here.weight_bytes / here.bytes_s,
    }


def read_weights(model: ModelSpec) -> float:
    """Weights that one pass of an engine over one token reads: the layers' and the output layer's."""
    return active_weights(model) + model.vocab_size * model.hidden_size
