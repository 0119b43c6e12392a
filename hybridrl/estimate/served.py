"""Memory of the engines of models that are never trained: the judge's, and those of the frozen player."""

from collections.abc import Iterator

from hybridrl.config.judge import ServedModelConfig
from hybridrl.config.schema import Config
from hybridrl.errors import HybridRLError
from hybridrl.estimate.gpus import GPUModel
from hybridrl.estimate.weights import on_engine
from hybridrl.models import hub
from hybridrl.models.spec import ModelSpec
from hybridrl.rollout.base import kind_of, layout_in

_HALF, _FULL = 2, 4
"""Bytes of a number on a GPU, and on CPU."""


def served_models(cfg: Config) -> Iterator[tuple[str, ServedModelConfig]]:
    """Section and content of each model that has engines and is not trained."""
    for section, model in (("judge", cfg.judge), ("frozen", cfg.frozen)):
        if model is not None:
            yield section, model


def served_bytes(cfg: Config, gpu: GPUModel | None) -> float:
    """Bytes of these engines on the fullest GPU, which each takes its share of; without GPUs, of all of them:
    their weights, and their caches as far as the config sets the size."""
    return sum(_bytes(cfg, model, gpu) for _, model in served_models(cfg))


def engines_on_a_gpu(model: ServedModelConfig, nodes: int, gpus_per_node: int) -> int:
    """Most engines that share a GPU: they are spread over nodes, and fill each one from its last GPU."""
    on_a_node = -(-model.num_engines // nodes)
    return -(-on_a_node // max(1, gpus_per_node // model.tp))


def weights_too_large(cfg: Config, gpu: GPUModel) -> Iterator[tuple[str, float, float]]:
    """Section, bytes of the weights on a GPU, and bytes of its share, for models whose weights do not fit."""
    for section, model in served_models(cfg):
        spec, share = _spec(model), model.memory_fraction * gpu.memory_bytes
        weights = _weights(cfg, model, spec, _HALF) if spec else 0.0
        if weights >= share:
            yield section, weights, share


def _bytes(cfg: Config, model: ServedModelConfig, gpu: GPUModel | None) -> float:
    if gpu is not None:
        of_each = model.memory_fraction * gpu.memory_bytes
        return of_each * engines_on_a_gpu(model, cfg.cluster.nodes, cfg.cluster.gpus_per_node or 1)
    spec = _spec(model)
    if spec is None:
        return 0.0
    cache = (model.kv_cache_tokens or 0) * spec.kv_cache_size * _FULL
    return model.num_engines * (_weights(cfg, model, spec, _FULL) * model.tp + cache)


def _spec(model: ServedModelConfig) -> ModelSpec | None:
    """None: the model is not here, or only its engine knows its sizes."""
    try:
        return hub.find_spec(model.path)
    except HybridRLError:
        return None


def _weights(cfg: Config, model: ServedModelConfig, spec: ModelSpec, element_bytes: int) -> float:
    """Bytes of an engine rank's parameters."""
    kind = kind_of(model.engine or cfg.rollout.engine)
    return on_engine(layout_in(kind, spec, kind.parallel(tp=model.tp)), element_bytes)
