"""Floating-point operations of a model, from its table.

A token costs two operations per weight that it is multiplied by, plus attention. Norms, rotary embeddings and
softmax are not counted, as in Megatron's own count.
"""

from functools import cache

from hybridrl.models import spec as models
from hybridrl.models.spec import ModelSpec


@cache
def active_weights(model: ModelSpec) -> float:
    """Number of layer weights that one token is multiplied by; only the token's own experts count."""
    found = 0.0
    for parameter in models.parameters(model):
        if not parameter.per_layer or parameter.cols is None:
            continue
        share = model.experts_per_token / model.num_experts if parameter.row.per_expert else 1.0
        found += parameter.num_elements * share
    return found


def attention(model: ModelSpec, context: float) -> float:
    """Attention operations of one token in all layers, with `context` keys: two matrix products."""
    query, value = model.head_dim, model.head_dim
    if model.latent:
        query, value = model.nope_head_dim + model.rope_head_dim, model.v_head_dim
    return 2.0 * model.num_layers * model.num_heads * (query + value) * context


def output_layer(model: ModelSpec) -> float:
    """Operations of the output layer for one token whose logits or value are computed."""
    return 2.0 * (1 if model.value_head else model.vocab_size) * model.hidden_size


def forward(model: ModelSpec, *, mean_length: float, trained_share: float) -> float:
    """Mean operations of the forward pass per token.

    Args:
        mean_length: mean sequence length; a token attends to half of it on average.
        trained_share: share of the tokens whose logits are computed.
    """
    layers = 2.0 * active_weights(model) + attention(model, mean_length / 2)
    return layers + trained_share * output_layer(model)
