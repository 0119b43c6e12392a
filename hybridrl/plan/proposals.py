"""What a search proposes, as text, as numbers, and as the keys that lead to it."""

from collections.abc import Iterator
from typing import Any

from hybridrl.config.training import TrainParallel
from hybridrl.estimate.fit import fits
from hybridrl.estimate.search import Proposal
from hybridrl.estimate.setting import Setting
from hybridrl.plan.amounts import gb, seconds
from hybridrl.plan.command import Plan
from hybridrl.wording import counted


def lines(found: Plan) -> Iterator[tuple[str, str]]:
    if not found.proposals:
        return
    setting = found.setting
    assert setting.gpu is not None
    count = setting.num_gpus
    yield "SEARCH", f"the fastest on {count} {setting.gpu.name}, by the same model:"
    if fits(setting):
        yield "", f"{'as it is':<10} {_line(Proposal.of(setting))}"
    for proposal in found.proposals:
        yield "", f"{'proposed':<10} {_line(proposal)}"
    best = found.proposals[0]
    yield "", f"to take the first: {_words(keys(best.setting))}"
    if (other := found.overlapped) is not None:
        faster = best.time.total / other.time.total
        yield "", f"with answers up to one update old, {faster:.2f} x as fast as the first: {_line(other)}"
        if faster > 1:
            yield "", f"to take it: {_words(older_keys(other.setting))}"


def _line(proposal: Proposal) -> str:
    setting, time = proposal.setting, proposal.time
    once = ", weights gathered once" if setting.gathers_once else ""
    own = " on GPUs of their own" if setting.separate else ""
    return (
        f"{seconds(time.total)}/step, {gb(proposal.spare_bytes)} to spare: {setting.backend}{once}, "
        f"{setting.train.dp} x ({sharding_name(setting.train)}), recompute {setting.recompute}, "
        f"{counted(setting.microbatch_tokens, 'token', form=',')} a microbatch, offload {setting.offload}; "
        f"engines {setting.num_engines} x TP{setting.engine.tp}{own}"
    )


def _words(overrides: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in overrides.items())


def older_keys(setting: Setting) -> dict[str, Any]:
    """The keys, with those that let answers be older than the policy."""
    return {**keys(setting), "batch.max_lag": setting.max_lag, "rollout.swap": "in_flight"}


def keys(setting: Setting) -> dict[str, Any]:
    """The config overrides that lead from its config to this setting."""
    axes, own = ("tp", "pp", "dp", "cp", "ep", "etp", "vpp"), setting.actor.parallel
    found = {f"actor.parallel.{axis}": getattr(setting.train, axis) for axis in axes}
    if setting.train.shard or own.shard:
        found["actor.parallel.shard"] = setting.train.shard or "null"
    if setting.train.stage_layers or own.stage_layers:
        found["actor.parallel.stage_layers"] = str(list(setting.train.stage_layers)).replace(" ", "")
    return found | {
        "actor.backend": setting.backend,
        "actor.gather": setting.actor.gather,
        "actor.keep_on_host": setting.actor.keep_on_host,
        "actor.recompute": setting.recompute,
        "actor.microbatch_tokens": setting.microbatch_tokens,
        "actor.offload": setting.offload,
        **{f"rollout.parallel.{size}": value for size, value in setting.engine.model_dump().items()},
        "rollout.num_engines": setting.num_engines,
        "rollout.memory_fraction": setting.memory_fraction,
        "cluster.placement": "separate" if setting.separate else "colocated",
    }


def as_dict(proposal: Proposal) -> dict[str, Any]:
    return {
        "keys": keys(proposal.setting),
        "time_s": proposal.time.as_dict(),
        "spare_bytes": proposal.spare_bytes,
    }


def sharding_name(sharding: TrainParallel) -> str:
    """The sizes above 1 as text, such as "TP8 x PP4 x CP2"."""
    sizes = {
        "TP": sharding.tp,
        "PP": sharding.pp,
        "VPP": sharding.vpp,
        "CP": sharding.cp,
        "EP": sharding.ep,
        "ETP": sharding.etp,
        "shard": sharding.shard or 1,
    }
    return " x ".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1) or "TP1"
