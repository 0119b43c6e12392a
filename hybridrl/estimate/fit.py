"""Whether a setting fits its GPUs, and otherwise the cheapest change of one key that makes it fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hybridrl.estimate.engine import engine_work, kv_bytes, kv_tokens
from hybridrl.estimate.memory import Phase, phases
from hybridrl.estimate.setting import Setting
from hybridrl.estimate.time import step_time
from hybridrl.wording import counted

_MOST_NODES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of one key."""

    key: str
    value: Any
    was: Any
    setting: Setting

    @property
    def text(self) -> str:
        return f"{self.key} = {self.value}"


def fits(setting: Setting) -> bool:
    """Whether all sizes divide, every phase fits, and microbatch and KV cache hold the longest trajectory.

    It is False for a setting without GPUs.
    """
    if setting.gpu is None or not setting.divides() or setting.microbatch_tokens < setting.batch.longest:
        return False
    return not too_small_cache(setting) and fullest(setting).peak <= setting.gpu.memory_bytes


def fullest(setting: Setting) -> Phase:
    return max(phases(setting), key=lambda phase: phase.peak)


def too_small_cache(setting: Setting) -> str:
    """Why an engine cannot hold the longest trajectory; "" if it can."""
    if not setting.num_engines:
        return ""
    longest, room = setting.batch.longest, kv_tokens(setting)
    if room >= longest:
        return ""
    if kv_bytes(setting) <= 0 and setting.gpu:
        beside = 0.0 if setting.separate else setting.served
        share = setting.memory_fraction * (setting.gpu.memory_bytes - beside)
        more = " and its computation" if engine_work(setting) else ""
        return f"the engine's weights{more} need more than its {share / 1e9:.1f} GB per GPU"
    return f"the engine's cache holds {counted(room, 'token', form=',')}, a trajectory may have {longest:,}"


def cheapest_change(setting: Setting) -> Change | None:
    """The change of one key that makes the setting fit and has the shortest step; None: there is none.

    More nodes are proposed only if no other change helps.
    """
    same = [change for change in _on_the_same_gpus(setting) if fits(change.setting)]
    if same:
        return min(same, key=lambda change: step_time(change.setting).total)
    return next((change for change in _more_nodes(setting) if fits(change.setting)), None)


def _on_the_same_gpus(setting: Setting) -> Iterator[Change]:
    yield from _microbatches(setting)
    for how in ("selective", "full"):
        yield from _change(setting, "actor.recompute", setting.recompute, how, recompute=how)
    for how in ("optimizer", "all") if not setting.separate else ():
        yield from _change(setting, "actor.offload", setting.offload, how, offload=how)
    yield from _on_host(setting)
    for axis in ("tp", "pp", "cp", "ep"):
        was = getattr(setting.train, axis)
        for size in _powers(was * 2, setting.num_gpus):
            with_sharding = setting.with_sharding(**{axis: size})
            yield Change(key=f"actor.parallel.{axis}", value=size, was=was, setting=with_sharding)
    # With dedicated GPUs, larger engines would need another number of engines too.
    for size in () if setting.separate else _powers(setting.engine.tp * 2, setting.num_gpus):
        engine = setting.engine.model_copy(update={"tp": size})
        with_sharding = replace(setting, engine=engine).filled(dp=setting.train.dp)
        yield Change(key="rollout.parallel.tp", value=size, was=setting.engine.tp, setting=with_sharding)
    was = setting.memory_fraction
    for fraction in (step / 20 for step in range(19, 5, -1)):
        yield from _change(setting, "rollout.memory_fraction", was, fraction, memory_fraction=fraction)


def _on_host(setting: Setting) -> Iterator[Change]:
    """State of the trainer in host memory, where ranks share the weights."""
    for how in ("optimizer", "all") if setting.shards_weights else ():
        actor = setting.actor.model_copy(update={"keep_on_host": how})
        yield from _change(setting, "actor.keep_on_host", setting.actor.keep_on_host, how, actor=actor)


def _microbatches(setting: Setting) -> Iterator[Change]:
    """Smaller microbatches, in steps of 1,024 tokens, down to the longest trajectory."""
    was, step = setting.microbatch_tokens, 1024
    sizes = [size for size in range(was // step * step, 0, -step) if setting.batch.longest <= size < was]
    for size in (*sizes, setting.batch.longest):
        yield from _change(setting, "actor.microbatch_tokens", was, size, microbatch_tokens=size)


def _change(setting: Setting, key: str, was: Any, value: Any, **fields: Any) -> Iterator[Change]:
    if value != was:
        yield Change(key=key, value=value, was=was, setting=replace(setting, **fields))


def _more_nodes(setting: Setting) -> Iterator[Change]:
    for nodes in _powers(1, _MOST_NODES):
        if nodes > setting.nodes:
            grown = replace(setting, nodes=nodes).filled()
            yield Change(key="cluster.nodes", value=nodes, was=setting.nodes, setting=grown)


def _powers(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2
