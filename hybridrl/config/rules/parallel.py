"""Rules about the parallel layout of trainer ranks that need only the config and the sizes of the model."""

from collections.abc import Iterator
from pathlib import Path

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext, model_name, one_of
from hybridrl.config.schema import Config
from hybridrl.config.sft_rm import SupervisedConfig
from hybridrl.config.training import TrainParallel
from hybridrl.errors import ConfigError, HybridRLError
from hybridrl.models.spec import ModelSpec
from hybridrl.wording import counted


def trainer_shardings(config: Config | SupervisedConfig) -> list[tuple[str, TrainParallel]]:
    """(key, sharding) of every group of ranks that trains or computes with the policy's model, the actor's
    first."""
    others = ()
    if isinstance(config, Config):
        critic, reference = config.critic.parallel, config.reference.parallel
        others = (("critic.parallel", critic), ("reference.parallel", reference))
    return [
        ("actor.parallel", config.actor.parallel),
        *((key, sharding) for key, sharding in others if sharding),
    ]


def all_shardings(config: Config | SupervisedConfig) -> list[tuple[str, TrainParallel]]:
    """The shardings of trainer_shardings, and that of the reward model, which may differ from the policy."""
    reward_model = config.reward_model if isinstance(config, Config) else None
    own = reward_model.parallel if reward_model else None
    return [*trainer_shardings(config), *([("reward_model.parallel", own)] if own else [])]


def wrong_sharding(
    loaded: LoadedConfig,
    key: str,
    sharding: TrainParallel,
    spec: ModelSpec | None,
    *,
    path: str | None = None,
) -> Iterator[ConfigError]:
    """
    Args:
        key: config key of the sharding.
        spec: the model that is sharded; None: not known yet.
        path: folder of that model; None: the policy's.
    """
    name = Path(path or loaded.config.model.path).name
    yield from _sizes_that_need_others(loaded, key, sharding)
    yield from _wrong_stages(loaded, key, sharding, spec.num_layers if spec else None, name)
    if spec is not None and not spec.num_experts:
        yield from _experts_that_are_not_there(loaded, key, sharding, name)


def actor_parallel_divides_the_model(loaded: LoadedConfig, context: RuleContext) -> Iterator[HybridRLError]:
    yield from _trainer_parallel(loaded, context, "actor.parallel", loaded.config.actor.parallel)


def other_trainers_divide_the_model(loaded: LoadedConfig, context: RuleContext) -> Iterator[HybridRLError]:
    for key, sharding in trainer_shardings(loaded.config)[1:]:
        yield from _trainer_parallel(loaded, context, key, sharding)


def engine_parallel_divides_the_model(loaded: LoadedConfig, context: RuleContext) -> Iterator[HybridRLError]:
    if context.spec is not None:
        yield from _tensor_parallel(
            loaded, context.spec, "rollout.parallel.tp", loaded.config.rollout.parallel.tp
        )


def _sizes_that_need_others(loaded: LoadedConfig, key: str, sharding: TrainParallel) -> Iterator[ConfigError]:
    if sharding.vpp > 1 and sharding.pp == 1:
        yield ConfigError(
            f"{key}.vpp = {counted(sharding.vpp, 'chunk')} take turns in a pipeline, {key}.pp = 1 has none",
            where=loaded.where(f"{key}.vpp", f"{key}.pp"),
            fix=f"set {key}.pp: 2, or {key}.vpp: 1",
        )
    if sharding.sp and sharding.tp == 1:
        yield ConfigError(
            f"{key}.sp = true shares tokens over the tensor-parallel ranks, {key}.tp = 1",
            where=loaded.where(f"{key}.sp", f"{key}.tp"),
            fix=f"set {key}.tp: 2, or leave {key}.sp out",
        )


def _wrong_stages(
    loaded: LoadedConfig, key: str, sharding: TrainParallel, num_layers: int | None, model: str
) -> Iterator[ConfigError]:
    num_chunks, name = sharding.pp * sharding.vpp, f"{key}.stage_layers"
    if sharding.stage_layers and len(sharding.stage_layers) != num_chunks:
        yield ConfigError(
            f"{name} = {list(sharding.stage_layers)} describes "
            f"{counted(len(sharding.stage_layers), 'chunk')}, {key}.pp x vpp = {num_chunks}",
            where=loaded.where(name, f"{key}.pp", f"{key}.vpp"),
            fix=f"give {counted(num_chunks, 'number')}, or [] for equal parts",
        )
    elif sharding.stage_layers and num_layers not in (None, sum(sharding.stage_layers)):
        yield ConfigError(
            f"{name} = {list(sharding.stage_layers)} adds up to "
            f"{counted(sum(sharding.stage_layers), 'layer')}, {model} has {num_layers}",
            where=loaded.where(name),
            fix=f"give {counted(num_chunks, 'number')} that add up to {num_layers}",
        )
    elif not sharding.stage_layers and num_layers is not None and num_layers % num_chunks:
        counts = [str(count) for count in range(1, num_layers + 1) if num_layers % count == 0]
        product = f"{key}.pp = {sharding.pp}" + (f" times vpp = {sharding.vpp}" if sharding.vpp > 1 else "")
        yield ConfigError(
            f"{product} does not divide the {counted(num_layers, 'layer')} of {model}",
            where=loaded.where(f"{key}.pp", f"{key}.vpp"),
            fix=f"use {', '.join(counts)}, or give {name}",
        )


def _experts_that_are_not_there(
    loaded: LoadedConfig, key: str, sharding: TrainParallel, model: str
) -> Iterator[ConfigError]:
    for axis, size in (("ep", sharding.ep), ("etp", sharding.etp)):
        if size > 1:
            yield ConfigError(
                f"{key}.{axis} = {size} is for experts, and {model} has none",
                where=loaded.where(f"{key}.{axis}"),
                fix=f"set {key}.{axis}: 1",
            )


def _trainer_parallel(
    loaded: LoadedConfig, context: RuleContext, key: str, sharding: TrainParallel
) -> Iterator[HybridRLError]:
    if context.spec is not None:
        yield from _tensor_parallel(loaded, context.spec, f"{key}.tp", sharding.tp)
    yield from wrong_sharding(loaded, key, sharding, context.spec)


def _tensor_parallel(loaded: LoadedConfig, spec: ModelSpec, key: str, tp: int) -> Iterator[HybridRLError]:
    def fits(size: int) -> bool:
        return spec.heads_divide(size) and spec.ffn_divides(size)

    if fits(tp):
        return
    good = [size for size in _divisors(spec.num_heads) if fits(size)]
    if spec.num_heads % tp:
        why = f"does not divide the {spec.num_heads} attention heads"
    elif not spec.ffn_divides(tp):
        why = f"does not divide the {' and '.join(map(str, spec.ffn_sizes))} feed-forward columns"
    else:
        why = f"neither divides the {spec.num_kv_heads} key-value heads nor is a multiple of them"
    what = f"{key} = {tp} {why} of {model_name(loaded)}"
    yield ConfigError(what, where=loaded.where(key), fix=f"use {one_of(good)}")


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
