"""Compute cost of the tokens of a sequence."""

from hybridrl.models.spec import ModelSpec, parameters


def attention_length(model: ModelSpec) -> float:
    """Sequence length at which causal attention costs as much as the products with the layers' weights.

    A token costs 2 operations per weight that it is multiplied by. Attention over length L costs L^2 / 2
    products of queries with keys, and as many of scores with values, in each head. Attention windows are
    ignored.
    """
    weights = sum(
        parameter.num_elements * _active_share(model, parameter.row.per_expert)
        for parameter in parameters(model)
        if parameter.per_layer and parameter.cols is not None
    )
    value_size = model.v_head_dim if model.latent else model.head_dim
    per_square = model.num_layers * model.num_heads * (model.head_dim + value_size)
    return 2 * weights / per_square


def _active_share(model: ModelSpec, per_expert: bool) -> float:
    """Share of a parameter that one token is multiplied by."""
    return model.experts_per_token / model.num_experts if per_expert else 1.0
