"""Rules about FP8 in the engines: rollout.precision and rollout.kv_cache_precision."""

from collections.abc import Iterator

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext
from hybridrl.config.schema import Config
from hybridrl.errors import ConfigError

_GPUS = {"precision": ("h100", "h200"), "kv_cache_precision": ("h100", "h200", "b200")}
"""Key of the section rollout -> values of cluster.gpu on which it may be fp8."""

_WHY = {
    "a100": "SGLang repacks block-FP8 weights for its Marlin kernels there, and a swap could not write them",
    "b200": "SGLang rewrites the scales of block-FP8 weights there, and a swap could not write them",
}

_ON_CPU = {
    "precision": "SGLang multiplies FP8 on a CPU with kernels for Intel AMX only, for which it repacks the "
    "weights, so that a swap cannot write them; other CPUs have no FP8 linear layers",
    "kv_cache_precision": "SGLang's attention on a CPU is torch's, which has no FP8",
}


def rollout_precision_fits_the_run(
    loaded: LoadedConfig[Config], context: RuleContext
) -> Iterator[ConfigError]:
    rollout = loaded.config.rollout
    for key in _GPUS:
        precision = getattr(rollout, key)
        if precision is not None:
            yield from _unfit_devices(loaded, context, key, precision)
    if rollout.precision == "fp8" and rollout.weight_path == "engine_api":
        yield ConfigError(
            "rollout.precision = fp8 with rollout.weight_path = engine_api: the weight swap quantises, the "
            "engine's own loader does not",
            where=loaded.where("rollout.weight_path", "rollout.precision"),
            fix="leave rollout.weight_path out",
        )


def _unfit_devices(
    loaded: LoadedConfig[Config], context: RuleContext, key: str, precision: str
) -> Iterator[ConfigError]:
    cluster, name = loaded.config.cluster, f"rollout.{key}"
    asked = cluster.gpus_per_node
    if asked == 0 or (asked is None and context.here and not context.num_gpus):
        has = "cluster.gpus_per_node = 0" if asked == 0 else "this machine has none"
        why = _ON_CPU[key] if precision == "fp8" else "engines compute in fp32 on a CPU"
        yield ConfigError(
            f"{name} = {precision} needs GPUs, {has}: {why}",
            where=loaded.where(name),
            fix=f"remove {name}",
        )
        return
    gpu = cluster.gpu or context.gpu
    if precision == "fp8" and gpu is not None and gpu not in _GPUS[key]:
        has = f"cluster.gpu = {gpu}" if cluster.gpu else f"this machine has {gpu}"
        why = _WHY.get(gpu) if key == "precision" else None
        yield ConfigError(
            f"{name} = fp8 needs {' or '.join(_GPUS[key])}, {has}{f': {why}' if why else ''}",
            where=loaded.where(name, "cluster.gpu"),
            fix=f"{name}: bf16",
        )
