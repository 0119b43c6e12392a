"""What the backward pass needs of the forward pass, tensor by tensor, on one rank.

After Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
arXiv:2205.05198, section 4, for the layers that the trainer has: packed sequences without padding, grouped
queries, a gated feed-forward, RMS norms, no dropout, attention that keeps no scores; and with experts or
latent attention. Experts are taken to be evenly loaded. Sizes are numbers per token, as wide as activations.
"""

from dataclasses import dataclass

from hybridrl.estimate.setting import Setting

LOGITS_AT_ONCE = 2**24
"""Elements of logits that the trainer's output layer holds at a time."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Numbers that one layer keeps or uses for each token of a rank."""

    kept: float
    """From the forward pass to its backward pass, without the layer's input."""

    input: float
    """What is kept of a layer that is computed again."""

    backward: float
    """At most held besides, while the layer's backward pass runs."""

    forward: float
    """At most held while the layer runs without a backward pass to come."""


def layer(setting: Setting, *, moe: bool) -> Layer:
    """
    Args:
        moe: a layer with experts.
    """
    model, sharding = setting.model, setting.train
    hidden = model.hidden_size / (sharding.tp if setting.sequence_parallel else 1)
    norms = _norms(setting, hidden)
    attention = _attention(setting)
    width = _ffn_width(setting, moe=moe)
    routed = _routed(setting) if moe else 0.0
    ffn = (3 if setting.fused else 5) * width
    gathered = model.hidden_size if setting.sequence_parallel else 0  # whole again before a cut linear layer
    # Between the factors of an adapter.
    low = setting.lora.rank * len(setting.lora.targets) if setting.lora else 0
    widths = 6 if setting.lora else 5  # gate and up, what an adapter adds to both, and their sum
    return Layer(
        kept=norms + attention + ffn + routed + low,
        input=hidden,
        backward=2 * width + 2 * hidden + gathered,
        forward=widths * width + 4 * hidden + gathered + routed,
    )


def _norms(setting: Setting, hidden: float) -> float:
    """Two sums along the residual path, and of each norm what enters its scale, and what leaves it."""
    return 2 * hidden + 2 * norm_outputs(setting) * hidden


def norm_outputs(setting: Setting) -> int:
    """What a norm keeps, in sizes of its output: a frozen scale needs nothing for its gradient."""
    return 1 if setting.fused or setting.lora else 2


def _attention(setting: Setting) -> float:
    """From the projection of q, k and v to the input of the projection that follows."""
    model, tp = setting.model, setting.train.tp
    if model.latent:
        return _latent_attention(setting)
    q, kv = model.num_heads * model.head_dim / tp, model.num_kv_heads * model.head_dim / tp
    turned = q + kv
    product = q if setting.recompute == "selective" else 2 * q  # the concatenated runs, and each run's own
    product = q if setting.fused else product
    angles = 0 if setting.fused else 4 * model.head_dim  # sines and cosines, for q and for k
    # q in a place of its own, and both before their scale, unless that is frozen.
    normed = q + (0 if setting.lora else q + kv) if model.qk_norm else 0
    gathered = kv_width(setting) * (setting.train.cp - 1)
    return (q + 2 * kv) + turned + product + angles + normed + gathered


def kv_width(setting: Setting) -> float:
    """Numbers of a token's keys and values on a rank."""
    model, tp = setting.model, setting.train.tp
    if model.latent:
        return model.sizes["mla_q"] / tp + model.sizes["mla_out"] / tp
    return 2 * model.num_kv_heads * model.head_dim / tp


def _latent_attention(setting: Setting) -> float:
    """q and k with their rotary part are assembled anew; the compressed forms are normed."""
    model, tp = setting.model, setting.train.tp
    sizes = model.sizes
    q, out = sizes["mla_q"] / tp, sizes["mla_out"] / tp
    narrow = sizes["q_lora"] + sizes["kv_lora_rope"]
    return 2 * narrow + 2 * q + q + sizes["mla_kv"] / tp + 2 * out


def _ffn_width(setting: Setting, *, moe: bool) -> float:
    """Columns of gated feed-forward that a token passes on this rank."""
    model, sharding = setting.model, setting.train
    if not moe:
        return model.ffn_size / sharding.tp
    return (
        model.experts_per_token * model.expert_ffn_size
    ) / sharding.tp + model.shared_ffn_size / sharding.tp


def _routed(setting: Setting) -> float:
    """A copy of the token for each of its experts, on the way there and back, and the router's scores.

    A rank has tokens / tp of the sequence, and gets as many as it sends.
    """
    model, sharding = setting.model, setting.train
    share = 1 / sharding.tp if setting.sequence_parallel else 1
    return (2 * model.experts_per_token * model.hidden_size + 2 * model.num_experts) * share


def loss_bytes(setting: Setting, trained: float, *, backward: bool) -> float:
    """At most held while the output layer and the loss run.

    Args:
        trained: tokens of the microbatch whose logits are computed.
        backward: a backward pass follows.
    """
    model, width = setting.model, setting.weight_bytes
    share = model.vocab_size / setting.train.tp
    selected = trained * model.hidden_size * width
    if model.value_head:
        return selected
    if trained * share <= LOGITS_AT_ONCE:
        return selected + trained * share * (width + 4 + 4)  # logits, their scores, the exponentials of these
    chunk = max(1, LOGITS_AT_ONCE // trained) * trained
    if not backward:
        return selected + chunk * (width if setting.fused else width + 4 + 4)
    # A piece's gradient is there until the next has its own. Fused, that one is written over the logits.
    entry_bytes = 2 * width if setting.fused else 2 * width + 3 * 4
    gradients = share * model.hidden_size * width + trained * model.hidden_size * 4
    return selected + gradients + chunk * entry_bytes


def in_flight(setting: Setting, stage: int, microbatches: int) -> float:
    """Microbatches whose activations a stage holds at most, counted in whole stages.

    1F1B, and its interleaved form of Narayanan et al. 2021, arXiv:2104.04473, section 2.2.
    """
    pp, vpp = setting.train.pp, setting.train.vpp
    if vpp == 1:
        return min(microbatches, pp - stage)
    chunks = 2 * (pp - stage - 1) + (vpp - 1) * pp + 1
    return min(microbatches * vpp, chunks) / vpp
