"""Activations that one rank keeps for the backward pass, tensor by tensor.

The formulas follow Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
arXiv:2205.05198, section 4, adapted to the trainer's layers: packed sequences without padding, grouped
queries, gated feed-forward, RMS norms, no dropout, attention that keeps no scores, and experts or latent
attention. Experts are assumed to be evenly loaded. Sizes are elements per token, in the dtype of activations.
"""

from dataclasses import dataclass

from hybridrl.estimate.setting import Setting

LOGITS_AT_ONCE = 2**24
"""Number of logits that the trainer's output layer holds at a time."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Elements that one layer keeps or uses per token of a rank."""

    kept: float
    """Elements kept from the forward pass until the backward pass, without the layer's input."""

    input: float
    """Elements of the layer's input, which is all that a recomputed layer keeps."""

    backward: float
    """Peak of additional elements while the layer's backward pass runs."""

    forward: float
    """Peak of elements while the layer runs without a backward pass to follow."""


def layer(setting: Setting, *, moe: bool) -> Layer:
    """The sizes of one layer.

    Args:
        moe: whether the layer has experts.
    """
    model, sharding = setting.model, setting.train
    hidden = model.hidden_size / (sharding.tp if setting.sequence_parallel else 1)
    norms = _norms(setting, hidden)
    attention = _attention(setting)
    width = _ffn_width(setting, moe=moe)
    routed = _routed(setting) if moe else 0.0
    ffn = (3 if setting.fused else 5) * width
    gathered = (
        model.hidden_size if setting.sequence_parallel else 0
    )  # Sequence shards are gathered before a sharded linear layer.
    # The product of A and the input, which every adapter keeps.
    low = setting.lora.rank * len(setting.lora.targets) if setting.lora else 0
    widths = 6 if setting.lora else 5  # Gate and up, the adapters' output for both, and the sum.
    return Layer(
        kept=norms + attention + ffn + routed + low,
        input=hidden,
        backward=2 * width + 2 * hidden + gathered,
        forward=widths * width + 4 * hidden + gathered + routed,
    )


def _norms(setting: Setting, hidden: float) -> float:
    """Elements of the two residual sums, and of the input and output of each norm's scale."""
    return 2 * hidden + 2 * norm_outputs(setting) * hidden


def norm_outputs(setting: Setting) -> int:
    """Number of output-sized tensors that a norm keeps. A fused or frozen scale keeps one fewer."""
    return 1 if setting.fused or setting.lora else 2


def _attention(setting: Setting) -> float:
    """Elements kept from the projection of q, k and v to the input of the output projection."""
    model, tp = setting.model, setting.train.tp
    if model.latent:
        return _latent_attention(setting)
    q, kv = model.num_heads * model.head_dim / tp, model.num_kv_heads * model.head_dim / tp
    rotated = q + kv
    product = (
        q if setting.recompute == "selective" else 2 * q
    )  # The output of each sequence, and their concatenation.
    product = q if setting.fused else product
    angles = 0 if setting.fused else 4 * model.head_dim  # Sines and cosines, for q and for k.
    # A separate copy of q, and the inputs of both scales unless these are frozen.
    normed = q + (0 if setting.lora else q + kv) if model.qk_norm else 0
    gathered = kv_width(setting) * (setting.train.cp - 1)
    return (q + 2 * kv) + rotated + product + angles + normed + gathered


def kv_width(setting: Setting) -> float:
    """Elements of a token's keys and values on a rank."""
    model, tp = setting.model, setting.train.tp
    if model.latent:
        return model.sizes["mla_q"] / tp + model.sizes["mla_out"] / tp
    return 2 * model.num_kv_heads * model.head_dim / tp


def _latent_attention(setting: Setting) -> float:
    """Elements kept by latent attention: q and k are concatenated with their rotary part, and the compressed
    forms are normalised."""
    model, tp = setting.model, setting.train.tp
    sizes = model.sizes
    q, out = sizes["mla_q"] / tp, sizes["mla_out"] / tp
    compressed = sizes["q_lora"] + sizes["kv_lora_rope"]
    return 2 * compressed + 2 * q + q + sizes["mla_kv"] / tp + 2 * out


def _ffn_width(setting: Setting, *, moe: bool) -> float:
    """Feed-forward columns that a token passes on this rank."""
    model, sharding = setting.model, setting.train
    if not moe:
        return model.ffn_size / sharding.tp
    return (
        model.experts_per_token * model.expert_ffn_size
    ) / sharding.tp + model.shared_ffn_size / sharding.tp


def _routed(setting: Setting) -> float:
    """Elements of the token's copies that are sent to its experts and back, and of the router's scores.

    With sequence parallelism a rank has 1 / tp of the tokens, and it receives as many as it sends.
    """
    model, sharding = setting.model, setting.train
    share = 1 / sharding.tp if setting.sequence_parallel else 1
    return (2 * model.experts_per_token * model.hidden_size + 2 * model.num_experts) * share


def loss_bytes(setting: Setting, trained: float, *, backward: bool) -> float:
    """Peak bytes while the output layer and the loss run.

    Args:
        trained: number of tokens of the microbatch whose logits are computed.
        backward: whether a backward pass follows.
    """
    model, width = setting.model, setting.weight_bytes
    share = model.vocab_size / setting.train.tp
    selected = trained * model.hidden_size * width
    if model.value_head:
        return selected
    if trained * share <= LOGITS_AT_ONCE:
        return selected + trained * share * (width + 4 + 4)  # Logits, log-probabilities, exponentials.
    chunk = max(1, LOGITS_AT_ONCE // trained) * trained
    if not backward:
        return selected + chunk * (width if setting.fused else width + 4 + 4)
    # A chunk's gradient is freed only when the next chunk has its own. Fused, it overwrites the logits.
    entry_bytes = 2 * width if setting.fused else 2 * width + 3 * 4
    gradients = share * model.hidden_size * width + trained * model.hidden_size * 4
    return selected + gradients + chunk * entry_bytes


def in_flight(setting: Setting, stage: int, microbatches: int) -> float:
    """Largest number of microbatches whose activations a stage holds, counted in whole stages.

    The schedule is 1F1B or its interleaved form, Narayanan et al. 2021, arXiv:2104.04473, section 2.2.
    """
    pp, vpp = setting.train.pp, setting.train.vpp
    if vpp == 1:
        return min(microbatches, pp - stage)
    chunks = 2 * (pp - stage - 1) + (vpp - 1) * pp + 1
    return min(microbatches * vpp, chunks) / vpp
