"""Estimates the seconds of a step by phase on GPUs, within about 25 % if its assumptions hold.

It assumes that matrix products run at a share of the peak, and links at a share of their rate. Nothing
overlaps, except that engines with dedicated GPUs generate while the trainer works if answers may be older
than one policy update. Generation follows a roofline model: each decoding step reads the engine's weights and
the KV cache of the running requests.
"""

from dataclasses import dataclass

from hybridrl.config.training import TrainParallel
from hybridrl.estimate import flops
from hybridrl.estimate.activations import kv_width
from hybridrl.estimate.engine import engine_weights, kv_bytes_per_token, kv_tokens
from hybridrl.estimate.gathered import GRADIENT_BYTES
from hybridrl.estimate.gpus import GPUModel
from hybridrl.estimate.memory import num_microbatches, resident, state
from hybridrl.estimate.setting import Role, Setting
from hybridrl.estimate.swap import SwapEstimate
from hybridrl.estimate.trainer_layouts import trainer_layout
from hybridrl.estimate.weights import on_stage

_MATMUL = 0.6
"""Share of the peak that large products of a layer reach. Megatron-LM reports 41 to 48 % on H100 for whole
steps."""

_FP8_MATMUL = 0.45
"""Share of the FP8 peak, conversions included: 1.5 times the bf16 rate. For whole steps of a 70 B model in
mxfp8, PyTorch's TorchAO reports 1.22 to 1.28 times the rate of bf16 on B200.
"""

_HALF_WIDTH = 256
"""Number of columns at which a product reaches half of that share."""

_LINK = 0.7
"""Share of a link's rate that long transfers reach."""

_HBM = 0.75
"""Share of the memory bandwidth that long transfers reach."""

_SHARD_BYTES = 4
"""Bytes of a weight in the shards of a trained model."""

_NODE_LATENCY_S = 10e-6
_NETWORK_LATENCY_S = 40e-6
"""Latency of one small all-reduce inside a node, and between nodes."""

_DECODE_OVERHEAD_S = 1e-3
"""Scheduling and sampling time per decoding step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of the phases, which run one after the other, unless `overlap` says otherwise."""

    generate: float
    logprobs: float
    train: float
    offload: float
    swap: float
    mfu: float
    """Model FLOPs utilisation of the training phase: operations without recomputation, over the bf16 peak."""

    overlap: float = 0.0
    """Seconds in which engines generate and the trainer works at the same time."""

    @property
    def total(self) -> float:
        return self.generate + self.logprobs + self.train + self.offload + self.swap - self.overlap

    def as_dict(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.__slots__} | {"total": self.total}


def step_time(setting: Setting, swap: SwapEstimate | None = None) -> StepTime:
    """The seconds of one step.

    Args:
        setting: a setting with GPUs.
        swap: estimate of the weight swap; None: every byte is assumed to cross the slowest link.
    """
    train, logprobs = train_s(setting), logprobs_s(setting)
    gpu = _gpu(setting)
    alone = [setting.alone(role) for role in setting.trained]
    done = sum(_passes(own, 3.0) * _forward_flops(own) for own in alone) * setting.batch.epochs
    overlaps = setting.separate and setting.max_lag > 0
    generate = stream_s(setting) if overlaps else generate_s(setting)
    return StepTime(
        generate=generate,
        logprobs=logprobs,
        train=train,
        offload=_offload_s(setting),
        swap=_least_swap_s(setting) if swap is None else swap_s(swap, gpu),
        mfu=done / (train * setting.train.num_ranks * gpu.flops),
        overlap=min(generate, logprobs + train) if overlaps else 0.0,
    )


def train_s(setting: Setting) -> float:
    """Seconds of all optimizer steps of a policy update, over all trained models.

    Models with dedicated ranks share the GPUs with the actor, so their times add up.
    """
    factor = {"none": 3.0, "selective": 3.2, "full": 4.0}[setting.recompute]
    alone = [setting.alone(role) for role in setting.trained]
    once = sum(_schedule_s(own, factor) + _data_parallel_s(own) + _optimizer_s(own) for own in alone)
    return once * setting.batch.optimizer_steps


def logprobs_s(setting: Setting) -> float:
    """Seconds of the forward passes over the whole batch: old_logp, frozen models, and values."""
    own: list[Role] = ["actor"] * setting.policy_passes
    asked: list[Role] = [*own, *setting.frozen, *setting.trained[1:]]
    settings = [setting.alone(role) for role in asked]
    per_minibatch = sum(_schedule_s(alone, 1.0) + _gathers_s(alone, 1) for alone in settings)
    return per_minibatch * setting.batch.optimizer_steps / setting.batch.epochs


def generate_s(setting: Setting) -> float:
    """Seconds until the last response of a step is complete. Responses to one prompt share its prefill."""
    if not setting.num_engines:
        return 0.0
    batch = setting.batch
    answers = batch.trajectories / setting.num_engines
    mean, longest = batch.mean_response, batch.response_tokens
    running = _running(setting, answers)
    tail = max(0.0, longest - mean)
    steady = max(0.0, (answers * mean - tail * running / 2) / running)
    if steady + tail < longest:
        decoding = longest * _decode_s(setting, max(1.0, answers * mean / longest))
    else:
        decoding = steady * _decode_s(setting, running) + tail * _decode_s(setting, max(1.0, running / 2))
    return decoding + _prefill_s(setting, batch.prompts / setting.num_engines * batch.mean_prompt)


def stream_s(setting: Setting) -> float:
    """Seconds in which engines with dedicated GPUs sample as many tokens as a step trains on, while the
    trainer works: with swaps in flight others take the place of answers that end, and after a swap the
    running ones compute their cache again; otherwise all answers end before a swap."""
    if not setting.swaps_in_flight:
        return generate_s(setting)
    batch = setting.batch
    answers = batch.trajectories / setting.num_engines
    running = _running(setting, answers * (1 + setting.max_lag))
    decoding = answers * batch.mean_response / running * _decode_s(setting, running)
    prompts = _prefill_s(setting, batch.prompts / setting.num_engines * batch.mean_prompt)
    return decoding + prompts + recompute_s(setting)


def swap_s(swap: SwapEstimate, gpu: GPUModel) -> float:
    """Seconds of any swap but the first: the bytes of one rank over each link, with the busiest sender on the
    network."""
    ranks, moving = swap.num_engine_ranks, 1 - swap.fixed_bytes / max(1, swap.written_bytes)
    local = 2 * swap.device_bytes / (gpu.hbm_bytes_s * _HBM)
    node = swap.node_bytes / (gpu.nvlink_bytes_s * _LINK)
    network = gpu.network_bytes_s * _LINK
    if swap.num_senders:  # few ranks may send to many, or many to few
        sent = swap.remote_bytes * swap.imbalance / swap.num_senders
        return moving * ((local + node) / ranks + max(sent, swap.remote_bytes / ranks) / network)
    return moving * (local + node + swap.remote_bytes * swap.imbalance / network) / ranks


def recomputed_tokens(setting: Setting) -> float:
    """Tokens that the running requests of one engine compute again after a swap in flight, on average."""
    batch = setting.batch
    running = _running(setting, batch.trajectories / setting.num_engines)
    return running * (batch.mean_prompt + batch.mean_response / 2)


def recompute_s(setting: Setting) -> float:
    """Seconds of an engine to compute these tokens."""
    return _prefill_s(setting, recomputed_tokens(setting))


def _prefill_s(setting: Setting, tokens: float) -> float:
    """Seconds of an engine to fill its cache with tokens that are known."""
    operations = tokens * 2 * flops.active_weights(setting.model) * _engine_slowness(setting)
    return operations / (setting.engine.tp * _gpu(setting).flops * _MATMUL)


def _schedule_s(setting: Setting, factor: float) -> float:
    """Seconds of one minibatch through the pipeline.

    Args:
        factor: 1 for the forward pass, 3 with backward, 4 with full recomputation.
    """
    sharding, count = setting.train, num_microbatches(setting)
    slowest = max(_stage_s(setting, stage, count, factor) for stage in {0, sharding.pp - 1})
    return slowest * (count + (sharding.pp - 1) / sharding.vpp)


def _stage_s(setting: Setting, stage: int, count: int, factor: float) -> float:
    """Seconds of one microbatch on one stage."""
    model, sharding, batch = setting.model, setting.train, setting.batch
    tokens = batch.trajectories_per_minibatch * batch.computed_length / ((sharding.dp or 1) * count)
    layers = sum(len(chunk) for chunk in setting.layout().chunks(stage))
    share = layers / model.num_layers
    products = 2.0 * share * flops.active_weights(model) * _fp8_slowness(setting)
    if stage == sharding.pp - 1:
        products += flops.output_layer(model) * batch.mean_response / batch.computed_length
    attention = share * flops.attention(model, batch.mean_length / 2)
    rate = _gpu(setting).flops * _MATMUL * _width_share(setting)
    per_token = _passes(setting, factor) * products + factor * attention
    compute = tokens * per_token / (sharding.tp * sharding.cp * rate)
    # Backward communicates as much as forward, although its products take twice as long. Recomputation
    # communicates once more.
    moves = factor if factor <= 1 else factor - 1
    return compute + moves * share * _layer_links_s(setting, tokens / sharding.cp)


def _passes(setting: Setting, factor: float) -> float:
    """The factor for products with weights. Frozen weights need no weight gradient, which saves one pass."""
    return factor - 1 if setting.lora and factor > 1 else factor


def _fp8_slowness(setting: Setting) -> float:
    """Time of the trainer's products in layers relative to bf16. A GPU without FP8 computes in bf16."""
    return _slowness(_gpu(setting), setting.fp8_share)


def _engine_slowness(setting: Setting) -> float:
    return _slowness(_gpu(setting), float(setting.precision == "fp8"))


def _slowness(gpu: GPUModel, fp8_share: float) -> float:
    if not gpu.fp8_flops:
        return 1.0
    return 1 - fp8_share * (1 - gpu.flops * _MATMUL / (gpu.fp8_flops * _FP8_MATMUL))


def _width_share(setting: Setting) -> float:
    """Efficiency of the feed-forward or expert products, which are slow if they have few columns."""
    model, sharding = setting.model, setting.train
    width = model.expert_ffn_size / sharding.etp if model.num_experts else model.ffn_size / sharding.tp
    return width / (width + _HALF_WIDTH)


def _layer_links_s(setting: Setting, tokens: float) -> float:
    """Seconds of forward communication in all layers, for the tokens of a context-parallel rank."""
    model, sharding = setting.model, setting.train
    hidden = tokens * model.hidden_size * setting.weight_bytes
    tensor = 2 * 2 * (sharding.tp - 1) / sharding.tp * hidden / _link(setting, sharding.tp)
    context = (
        _context_width(setting) * tokens * setting.weight_bytes / _link(setting, sharding.tp * sharding.cp)
    )
    found = model.num_layers * (tensor + context)
    if sharding.ep > 1:
        sent = hidden / sharding.tp * model.experts_per_token * (sharding.ep - 1) / sharding.ep
        found += len(model.layers("moe")) * 2 * sent / _link(setting, sharding.ep * sharding.etp)
    return found


def _context_width(setting: Setting) -> float:
    """Elements that a context-parallel rank sends for each of its tokens in a layer: its keys and values to
    every other rank, or the heads of queries, keys, values and outputs that others compute."""
    cp = setting.train.cp
    if not setting.exchanges_heads:
        return (cp - 1) * kv_width(setting)
    outputs = 2 * setting.model.num_heads * setting.model.head_dim / setting.train.tp
    return (outputs + kv_width(setting)) * (cp - 1) / cp


def _data_parallel_s(setting: Setting) -> float:
    """Seconds to reduce gradients and gather weights, once per optimizer step. Where ranks share the weights,
    they are gathered twice per microbatch."""
    sharding = setting.train
    if setting.shards_weights:
        return _reduce_shards_s(setting) + _gathers_s(setting, 2)
    share = on_stage(setting.adapters() or setting.layout(), 0)
    replicas = sharding.cp * (sharding.dp or 1)
    experts = sharding.tp * replicas / (sharding.ep * sharding.etp)
    moved = share.dense * (replicas - 1) / replicas + share.expert * (experts - 1) / experts
    return moved * (GRADIENT_BYTES + setting.weight_bytes) / _link(setting, sharding.tp * replicas)


def _reduce_shards_s(setting: Setting) -> float:
    """Seconds to sum gradients over the ranks that share the weights, then their shards over the copies."""
    sharding, shards = setting.train, setting.num_shards
    share = on_stage(setting.adapters() or setting.layout(), 0).all * GRADIENT_BYTES
    copies = sharding.cp * (sharding.dp or 1) // shards
    among = share * (shards - 1) / _link(setting, sharding.tp * shards)
    return among + 2 * share * (copies - 1) / copies / _link(setting, sharding.tp * shards * copies)


def _gathers_s(setting: Setting, passes: int) -> float:
    """Seconds to gather all weights once per microbatch of a minibatch and pass, or with actor.gather = once
    only once; 0 where ranks share none.

    Args:
        passes: 1 for the forward pass, 2 with backward.
    """
    if not setting.shards_weights:
        return 0.0
    shards = setting.num_shards
    passed = on_stage(setting.layout(), 0).all * (shards - 1) * setting.weight_bytes
    times = 1 if setting.gathers_once else passes * num_microbatches(setting)
    return times * (passed / _link(setting, setting.train.tp * shards) + _from_host_s(setting))


def _from_host_s(setting: Setting) -> float:
    """Seconds to copy the shards of a model to the GPU once, if they are in host memory."""
    if setting.on_host != "all":
        return 0.0
    return on_stage(setting.layout(), 0).all * _SHARD_BYTES / (_gpu(setting).host_bytes_s * _LINK)


def _optimizer_s(setting: Setting) -> float:
    """Seconds to read and write the optimizer state, read gradients and write weights. Weights without master
    weights are fp32, as gradients are, and are read too. An optimizer in host memory gets the gradients over
    the link to the host, and with weights on the GPU those as well, both ways; the memory of the host is
    counted as fast as that link."""
    held = state(setting, 0)
    written = held.gradients / GRADIENT_BYTES * setting.weight_bytes
    weights = written if setting.master_weights else 2 * held.gradients
    moved = 2 * held.optimizer + held.gradients + weights
    if setting.on_host == "none":
        return moved / (_gpu(setting).hbm_bytes_s * _HBM)
    sent = held.gradients * (3 if setting.on_host == "optimizer" else 1)
    return (moved + sent) / (_gpu(setting).host_bytes_s * _LINK)


def _offload_s(setting: Setting) -> float:
    """Seconds to move offloaded state to the host and back."""
    held = resident(setting, 0)
    away = held.all - held.after_offload(setting).all
    return 2 * away / (_gpu(setting).host_bytes_s * _LINK)


def _least_swap_s(setting: Setting) -> float:
    if not setting.separate:
        return engine_weights(setting) / _link(setting, setting.num_gpus)
    return _least_broadcast_s(setting)


def _least_broadcast_s(setting: Setting) -> float:
    """Every node of engines gets its part of the weights once, over the links of its GPUs and of those of the
    trainer; each GPU passes on its share inside the node."""
    gpu, inside = _gpu(setting), min(setting.gpus_per_node, setting.engine_gpus)
    copies = max(1, setting.engine_gpus // max(inside, setting.engine.tp))
    whole = engine_weights(setting) * setting.engine.tp
    per_rank = whole * max(copies / setting.train.num_ranks, copies / setting.engine_gpus)
    return per_rank / (gpu.network_bytes_s * _LINK) + engine_weights(setting) / (gpu.nvlink_bytes_s * _LINK)


def _running(setting: Setting, answers: float) -> float:
    """Number of requests that an engine decodes at the same time."""
    room = kv_tokens(setting) / (setting.batch.mean_prompt + setting.batch.mean_response)
    return max(1.0, min(answers, setting.running_requests, room))


def _decode_s(setting: Setting, running: float) -> float:
    """Seconds of one decoding step, which generates one token for each running request."""
    model, sharding, gpu = setting.model, setting.engine, _gpu(setting)
    context = setting.batch.mean_prompt + setting.batch.mean_response / 2
    read = engine_weights(setting) * _touched(setting, running)
    read += running / sharding.attention_copies * context * kv_bytes_per_token(setting)
    products = 2 * flops.active_weights(model) * _engine_slowness(setting)
    operations = products + flops.attention(model, context)
    operations = running * (operations + flops.output_layer(model)) / sharding.tp
    link = _link(setting, sharding.tp)
    latency = _NODE_LATENCY_S if sharding.tp <= setting.gpus_per_node else _NETWORK_LATENCY_S
    sent = running * model.hidden_size * setting.engine_bytes * 2 * (sharding.tp - 1) / sharding.tp
    links = 2 * model.num_layers * (latency + sent / link) if sharding.tp > 1 else 0.0
    busy = max(read / (gpu.hbm_bytes_s * _HBM), operations / (gpu.flops * _MATMUL))
    return busy + links + _DECODE_OVERHEAD_S


def _touched(setting: Setting, running: float) -> float:
    """Share of the engine's weights that a decoding step reads. Experts that no request chose are skipped."""
    model = setting.model
    if not model.num_experts:
        return 1.0
    missed = (1 - model.experts_per_token / model.num_experts) ** running
    whole = on_stage(trainer_layout(setting.backend, model, TrainParallel()), 0)
    return 1 - missed * whole.expert / whole.all


def _link(setting: Setting, ranks: int) -> float:
    """Bytes per second of a rank in a group of neighbouring ranks."""
    gpu = _gpu(setting)
    inside = ranks <= setting.gpus_per_node
    return _LINK * (gpu.nvlink_bytes_s if inside else gpu.network_bytes_s)


def _forward_flops(setting: Setting) -> float:
    """Operations of one forward pass over the batch."""
    batch = setting.batch
    per_token = flops.forward(
        setting.model,
        mean_length=batch.mean_length,
        trained_share=batch.mean_response / batch.computed_length,
    )
    return batch.trajectories * batch.computed_length * per_token


def _gpu(setting: Setting) -> GPUModel:
    assert setting.gpu is not None, "there is no time estimate for a CPU"
    return setting.gpu
