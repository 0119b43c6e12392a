"""Rules about actor.fp8: what it demands of the GPUs, of other keys and of the sizes of the model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext
from hybridrl.config.rules.parallel import trainer_shardings
from hybridrl.config.training import TrainParallel
from hybridrl.errors import ConfigError
from hybridrl.models.spec import ModelSpec
from hybridrl.wording import counted

FP8_GPUS = {
    "tensorwise": ("h100", "h200", "b200"),
    "blockwise": ("h100", "h200"),
    "mxfp8": ("b200",),
}
"""Recipe -> values of cluster.gpu that support it."""

_MULTIPLE = {"tensorwise": 16, "blockwise": 16, "mxfp8": 32}
"""Rows and columns of a rank's shard of a weight must be multiples of it: Transformer Engine multiplies no
other shapes in FP8.
"""


def fp8_fits_the_run(loaded: LoadedConfig[Any], context: RuleContext) -> Iterator[ConfigError]:
    """The rule holds for training on examples too."""
    actor = loaded.config.actor
    if actor.fp8 == "none":
        if actor.bf16_layers:
            yield ConfigError(
                f"actor.bf16_layers = {actor.bf16_layers} has no effect with actor.fp8 = none",
                where=loaded.where("actor.bf16_layers"),
                fix="remove it, or set actor.fp8",
            )
        return
    yield from _unfit_keys(loaded)
    yield from _unfit_gpus(loaded, context)
    if context.spec is not None:
        yield from _unfit_sizes(loaded, context.spec)
        yield from _too_many_left_out(loaded, context.spec)


def _unfit_keys(loaded: LoadedConfig[Any]) -> Iterator[ConfigError]:
    actor = loaded.config.actor
    if actor.precision not in (None, "bf16"):
        yield ConfigError(
            f"actor.fp8 = {actor.fp8} needs bf16 parameters, actor.precision = {actor.precision}",
            where=loaded.where("actor.precision", "actor.fp8"),
            fix="leave actor.precision out",
        )
    if actor.lora is not None:
        yield ConfigError(
            f"actor.fp8 = {actor.fp8} needs linear layers of Transformer Engine, actor.lora is not for these",
            where=loaded.where("actor.lora", "actor.fp8"),
            fix="remove one of them",
        )


def _unfit_gpus(loaded: LoadedConfig[Any], context: RuleContext) -> Iterator[ConfigError]:
    recipe, cluster = loaded.config.actor.fp8, loaded.config.cluster
    without = cluster.gpus_per_node == 0 or (
        cluster.gpus_per_node is None and context.here and not context.num_gpus
    )
    if without:
        has = "this machine has none" if cluster.gpus_per_node is None else "cluster.gpus_per_node = 0"
        yield ConfigError(
            f"actor.fp8 = {recipe} needs GPUs, {has}", where=loaded.where("actor.fp8"), fix="remove actor.fp8"
        )
    elif (gpu := cluster.gpu or context.gpu) is not None and gpu not in FP8_GPUS[recipe]:
        good = [name for name, gpus in FP8_GPUS.items() if gpu in gpus]
        has = f"cluster.gpu = {gpu}" if cluster.gpu else f"this machine has {gpu}"
        yield ConfigError(
            f"actor.fp8 = {recipe} needs {' or '.join(FP8_GPUS[recipe])}, {has}",
            where=loaded.where("actor.fp8", "cluster.gpu"),
            fix=f"use {' or '.join([*good, 'none'])}",
        )


def _unfit_sizes(loaded: LoadedConfig[Any], spec: ModelSpec) -> Iterator[ConfigError]:
    config = loaded.config
    recipe, model = config.actor.fp8, Path(config.model.path).name
    multiple = _MULTIPLE[recipe]
    for key, sharding in trainer_shardings(config):
        wrong = {what: size for what, size in _sizes(spec, sharding).items() if size % multiple}
        if wrong:
            told = ", ".join(f"{what} {size:g}" for what, size in wrong.items())
            yield ConfigError(
                f"actor.fp8 = {recipe} multiplies matrices whose sides are multiples of {multiple}; with "
                f"{key}.tp = {sharding.tp}, etp = {sharding.etp} a rank of {model} has {told}",
                where=loaded.where("actor.fp8", f"{key}.tp", f"{key}.etp"),
                fix=f"use a smaller {key}.tp, or actor.fp8: none",
            )


def _sizes(spec: ModelSpec, sharding: TrainParallel) -> dict[str, float]:
    """Side lengths of a rank's shards of the weights, by name."""
    whole, tp = spec.sizes, sharding.tp
    if spec.latent:
        narrow = {"compressed q": whole["q_lora"], "compressed k and v": whole["kv_lora"]}
        narrow["compressed k and v with the rotary key"] = whole["kv_lora_rope"]
        wide = {"q": whole["mla_q"], "k and v": whole["mla_kv"], "attention output": whole["mla_out"]}
    else:
        narrow = {}
        wide = {"fused q, k and v": whole["q"] + 2 * whole["kv"], "attention output": whole["q"]}
    wide["feed-forward columns"] = whole["ffn"] if spec.layers("dense") else 0
    wide["columns of the shared experts"] = whole["shared_ffn"]
    experts = {"columns of an expert": whole["expert_ffn"] / sharding.etp}
    return {"hidden size": whole["hidden"], **narrow, **{k: n / tp for k, n in wide.items()}, **experts}


def _too_many_left_out(loaded: LoadedConfig[Any], spec: ModelSpec) -> Iterator[ConfigError]:
    actor = loaded.config.actor
    most = spec.num_layers // actor.parallel.pp  # what Megatron allows
    if actor.bf16_layers > most or 2 * actor.bf16_layers >= spec.num_layers:
        yield ConfigError(
            f"actor.bf16_layers = {actor.bf16_layers} at each end is too many of "
            f"{counted(spec.num_layers, 'layer')} in actor.parallel.pp = "
            f"{counted(actor.parallel.pp, 'stage')}",
            where=loaded.where("actor.bf16_layers", "actor.parallel.pp"),
            fix=f"use at most {min(most, (spec.num_layers - 1) // 2)}",
        )
