"""How an engine cuts its model, from the config. Imports no sglang."""

from hybridrl.config.schema import EngineParallel
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import ModelSpec


def engine_layout(model: ModelSpec, parallel: EngineParallel) -> SGLangLayout:
    """
    Raises:
        LayoutError: the model does not divide over the engine's devices.
    """
    return SGLangLayout(model, tp=parallel.tp, ep=parallel.ep, dp_attention=parallel.dp_attention)
