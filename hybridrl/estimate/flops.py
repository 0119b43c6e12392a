"""Floating-point operations of a model, from its table: two for each weight that a token is multiplied by,
and attention by the lengths. Norms, rotations and softmax are left out, as in Megatron's own count.
"""

from functools import cache

from hybridrl.models import spec as models
from hybridrl.models.spec import ModelSpec


@cache
def active_weights(model: ModelSpec) -> float:
    """Weights of the layers that one token is multiplied by: of its experts, not of all."""
    found = 0.0
    for parameter in models.parameters(model):
        if not parameter.per_layer or parameter.cols is None:
            continue
        share = model.experts_per_token / model.num_experts if parameter.row.per_expert else 1.0
        found += parameter.num_elements * share
    return found


def attention(model: ModelSpec, context: float) -> float:
    """Of one token in all layers, whose queries meet `context` keys: two products."""
    query, value = model.head_dim, model.head_dim
    if model.latent:
        query, value = model.nope_head_dim + model.rope_head_dim, model.v_head_dim
    return 2.0 * model.num_layers * model.num_heads * (query + value) * context


def output_layer(model: ModelSpec) -> float:
    """Of one token whose logits, or value, are computed."""
    return 2.0 * (1 if model.value_head else model.vocab_size) * model.hidden_size


def forward(model: ModelSpec, *, mean_length: float, trained_share: float) -> float:
    """Of one token on average.

    Args:
        mean_length: of a sequence: a token meets half of it.
        trained_share: of the tokens, those whose logits are computed.
    """
    layers = 2.0 * active_weights(model) + attention(model, mean_length / 2)
    return layers + trained_share * output_layer(model)
