"""What the tokens of a sequence cost a model to compute."""

from hybridrl.models.spec import ModelSpec, parameters


def attention_length(model: ModelSpec) -> float:
    """Length at which causal attention costs a sequence as much as the layers' weights.

    A token costs 2 operations per weight that it meets. Attention over a length L costs L^2 / 2 products of
    queries with keys, and as many of weights with values, in each head. Windows of attention are not counted.
    """
    weights = sum(
        parameter.num_elements * _met_share(model, parameter.row.per_expert)
        for parameter in parameters(model)
        if parameter.per_layer and parameter.cols is not None
    )
    value_size = model.v_head_dim if model.latent else model.head_dim
    per_square = model.num_layers * model.num_heads * (model.head_dim + value_size)
    return 2 * weights / per_square


def _met_share(model: ModelSpec, per_expert: bool) -> float:
    """Of a parameter, by one token."""
    return model.experts_per_token / model.num_experts if per_expert else 1.0
