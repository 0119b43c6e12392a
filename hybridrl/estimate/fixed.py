"""Which parameters no optimizer step changes, by the config alone: only the first weight swap writes them."""

from collections.abc import Iterable

from hybridrl.estimate.pictures import has_pictures
from hybridrl.estimate.setting import Setting
from hybridrl.layout.base import instance
from hybridrl.models import spec as models
from hybridrl.models.families._vision import projector
from hybridrl.models.table import Parameter

_TOWER = "vision."


def fixed(setting: Setting) -> frozenset[str]:
    """Canonical names, such as "layers.3.qkv".

    Raises:
        LayoutError: the model lacks a linear layer that should have an adapter.
    """
    every, adapters = models.parameters(setting.model), setting.adapters()
    if adapters is not None:
        trained = {parameter.name for parameter in adapters.linears}
        return _names(p for p in every if p.name not in trained)
    return _names(p for p in every if p.name.startswith(_TOWER) and not _is_trained(p, setting))


def _is_trained(parameter: Parameter, setting: Setting) -> bool:
    mode = setting.actor.vision.mode if has_pictures(setting) else "frozen"
    return mode == "train" or (mode == "projector" and projector(parameter.name.removeprefix(_TOWER)))


def _names(parameters: Iterable[Parameter]) -> frozenset[str]:
    return frozenset(instance(p.name, layer) for p in parameters for layer in p.layers)
