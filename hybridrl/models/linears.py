"""The linear layers that can have an adapter, by their names in a config."""

from collections.abc import Sequence

from hybridrl.models.spec import ModelSpec, parameters
from hybridrl.models.table import Parameter

LINEARS = {
    "qkv": "layers.*.qkv",
    "proj": "layers.*.attention_out",
    "fc1": "layers.*.gate_up",
    "fc2": "layers.*.down",
}
"""Target in a config -> name of the row in a model table."""


def linears(spec: ModelSpec, targets: Sequence[str]) -> list[Parameter]:
    """The weights that the targets name. A target that the model lacks adds none."""
    lines = {LINEARS[target] for target in targets}
    return [parameter for parameter in parameters(spec) if parameter.name in lines]


def present(spec: ModelSpec) -> list[str]:
    """The targets that a model has."""
    return [target for target in LINEARS if linears(spec, [target])]
