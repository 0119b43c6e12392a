"""Reports a plan as text with headings, or as one JSON object."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hybridrl.estimate import pictures, swap
from hybridrl.estimate.engine import kv_tokens
from hybridrl.estimate.fit import fullest
from hybridrl.estimate.gpus import GPUS
from hybridrl.estimate.memory import (
    Phase,
    checkpoint_bytes,
    host_bytes,
    logprobs,
    num_microbatches,
    on_cpu,
    phases,
    rollout,
    scoring,
    training,
)
from hybridrl.estimate.pictures import has_pictures, pixel_bytes, step_pixels, tower_kept, tower_weights
from hybridrl.estimate.setting import Role, Setting
from hybridrl.estimate.time import StepTime, recompute_s, recomputed_tokens, step_time
from hybridrl.models import spec as models
from hybridrl.plan import proposals
from hybridrl.plan.amounts import gb, seconds
from hybridrl.plan.command import Plan
from hybridrl.plan.proposals import sharding_name
from hybridrl.wording import counted

_COLUMNS = ("weights", "grads+optim", "activations", "engine", "KV pool", "peak")
_WIDE = 10 + 26 + 13 * len(_COLUMNS)
"""Characters of a row of the table of memory, with its heading."""

_NARROW = {"weights": 8, "grads+opt": 10, "activations": 12, "engine": 7, "KV pool": 8, "peak": 7}
"""Columns of the narrow table and their characters: numbers without their unit."""


def lines(found: Plan, width: int | None = None) -> Iterator[tuple[str, str]]:
    """(heading, text) of each line. A line with an empty heading belongs to the heading above it.

    Args:
        width: characters per line; below the width of the memory table a narrower one is printed. None: any.
    """
    setting = found.setting
    yield from _batch(setting)
    yield from _served(found)
    yield from _memory(found, narrow=width is not None and width < _WIDE)
    if found.swap is not None:
        yield from swap.lines(found.swap)
    elif setting.num_engines and not setting.model.has_table:
        yield from _through_loader(setting)
    if setting.swaps_in_flight:
        yield from _recomputation(setting)
    if setting.gpu is not None and setting.divides():
        yield from _time(found)
    yield from _verdict(found)
    yield from proposals.lines(found)


def as_dict(found: Plan) -> dict[str, Any]:
    """The numbers of the report in bytes and seconds."""
    setting = found.setting
    told: dict[str, Any] = {
        "fits": found.refusal is None,
        "batch": _batch_dict(setting),
        "swap": None if found.swap is None else found.swap.as_dict(),
    }
    if setting.gpu is None or setting.divides():
        told["memory"] = [_phase_dict(phase) for phase in phases(setting)]
        told["served_bytes"] = setting.served
        told["checkpoint_bytes"] = checkpoint_bytes(setting)
        told["host_bytes_per_node"] = host_bytes(setting)
    if setting.gpu is not None and setting.divides():
        told["gpu_bytes"] = setting.gpu.memory_bytes
        told["time_s"] = {
            name: step_time(replace(setting, gpu=gpu), found.swap).as_dict() for name, gpu in GPUS.items()
        }
    if has_pictures(setting):
        told["pictures"] = pictures.as_dict(setting)
    if setting.swaps_in_flight:
        told["recomputed_tokens_per_engine"] = recomputed_tokens(setting)
    if found.proposals:
        told["proposals"] = [proposals.as_dict(proposal) for proposal in found.proposals]
    if found.overlapped:
        other = found.overlapped
        told["overlapped"] = proposals.as_dict(other) | {"keys": proposals.older_keys(other.setting)}
    return told


def _recomputation(setting: Setting) -> Iterator[tuple[str, str]]:
    """What running answers cost when a swap drops their cache."""
    took = f", {seconds(recompute_s(setting))}" if setting.gpu is not None and setting.divides() else ""
    yield (
        "in flight",
        f"after a swap the running answers of an engine compute about {_count(recomputed_tokens(setting))} "
        f"tokens of cache again{took} (rollout.swap = in_flight)",
    )


def _through_loader(setting: Setting) -> Iterator[tuple[str, str]]:
    """A model without a table: no layout says where an engine keeps its weights."""
    size = models.count(setting.model) * setting.weight_bytes
    engines = counted(setting.num_engines, "engine")
    yield "swap", f"{gb(size)} through host memory into the loaders of {engines}: there is no model table"


def _batch(setting: Setting) -> Iterator[tuple[str, str]]:
    if not setting.num_engines:
        yield from _example_batch(setting)
        return
    batch, steps = setting.batch, setting.batch.optimizer_steps
    yield (
        "BATCH",
        f"{counted(batch.prompts, 'prompt', form=',')} x {counted(batch.samples, 'sample')} = "
        f"{_trajectories(batch.trajectories)}/step, at most {_count(batch.trajectories * batch.longest)} "
        "tokens/step",
    )
    yield (
        "",
        f"{_trajectories(round(batch.trajectories_per_minibatch))} a minibatch -> "
        f"{counted(steps, 'optimizer step')} ({steps - 1} of them off-policy), each {_microbatches(setting)}",
    )
    yield (
        "",
        f"actor: {_actor(setting)}; engines: {setting.num_engines} x TP{setting.engine.tp}"
        f"{_in_fp8(setting)}, "
        f"{counted(kv_tokens(setting), 'token', form=',')} of cache each",
    )
    if setting.separate and setting.gpu is not None:
        yield (
            "",
            f"devices: trainer {counted(setting.trainer_gpus, 'GPU')}, engines "
            f"{counted(setting.engine_gpus, 'GPU')} of their own (cluster.placement = separate)",
        )
    if has_pictures(setting):
        yield from _pictures(setting)
    if batch.turn_tokens:
        yield from _episodes(setting)
    beside = [_beside(setting, role) for role in (*setting.trained, *setting.frozen) if role != "actor"]
    if beside:
        yield "", "; ".join(beside)


def _pictures(setting: Setting) -> Iterator[tuple[str, str]]:
    """What pictures may take: of a prompt, of the wire, and of the first stage."""
    batch, tower = setting.batch, tower_weights(setting.model)
    held = "on every rank of the first stage"
    if setting.shards_weights:
        held = "shared by the ranks, gathered with the embedding"
    yield (
        "pictures",
        f"at most {counted(batch.picture_tokens, 'token', form=',')} each; a prompt's pixels at most "
        f"{gb(pixel_bytes(setting, batch.prompt_tokens))}, from engines to ranks about "
        f"{gb(step_pixels(setting))} a step",
    )
    yield (
        "",
        f"vision tower: {_count(tower)} parameters {held}, actor.vision.mode = "
        f"{setting.actor.vision.mode}; up to {gb(tower_kept(setting))} of activations for a microbatch",
    )


def _served(found: Plan) -> Iterator[tuple[str, str]]:
    """The engines of models that are never trained."""
    gpu = found.setting.gpu
    for section, model in found.served:
        share = f", {gb(model.memory_fraction * gpu.memory_bytes)} of each of their GPUs" if gpu else ""
        engines = f"{model.num_engines} x TP{model.tp}"
        yield "", f"{section} ({model.path}): {engines}{share}; counted under engine"


def _episodes(setting: Setting) -> Iterator[tuple[str, str]]:
    """Budgets of an episode, how many episodes an engine's cache holds, and what later turns find in it."""
    batch, cache = setting.batch, kv_tokens(setting)
    yield (
        "episodes",
        f"up to {counted(batch.turns, 'turn')} of at most {counted(batch.turn_tokens, 'token', form=',')} in "
        f"a context of {batch.longest:,}; an engine's cache holds {cache // batch.longest:,} such contexts",
    )
    asked = sum(batch.prompt_tokens + k * batch.turn_tokens for k in range(batch.turns))
    whole = batch.prompt_tokens + (batch.turns - 1) * batch.turn_tokens
    yield (
        "",
        f"requests of an episode read up to {_count(asked)} tokens, all but {_count(whole)} of them from the "
        f"cache; its environment may take up to {seconds(batch.turns * batch.turn_s)} in all",
    )


def _example_batch(setting: Setting) -> Iterator[tuple[str, str]]:
    batch = setting.batch
    answers = f" x {counted(batch.samples, 'answer')}" if batch.samples > 1 else ""
    examples = f"{counted(batch.prompts, 'example', form=',')}{answers}"
    yield "BATCH", f"{examples} -> 1 optimizer step, {_microbatches(setting)}"
    yield "", f"actor: {_actor(setting)}"


def _trajectories(number: int) -> str:
    return counted(number, "trajectory", "trajectories", form=",")


def _microbatches(setting: Setting) -> str:
    """How many an optimizer step has, their size, and the ranks that have as many each."""
    micro, dp = num_microbatches(setting), setting.train.dp or 1
    ranks = f"{'each of ' if dp > 1 else ''}{counted(dp, 'data-parallel rank')}"
    return (
        f"about {counted(micro, 'microbatch', 'microbatches')} of at most "
        f"{counted(setting.microbatch_tokens, 'token', form=',')} on {ranks}"
    )


def _actor(setting: Setting) -> str:
    """The actor's parallel layout, and its LoRA and FP8 settings."""
    adapters = f", only adapters of rank {setting.lora.rank} are trained" if setting.lora else ""
    fp8 = f", {setting.fp8_share:.0%} of the layers in FP8" if setting.fp8_share else ""
    return f"{setting.train.dp} x ({sharding_name(setting.train)}){adapters}{fp8}"


def _in_fp8(setting: Setting) -> str:
    """What engines have in FP8."""
    parts = [*(["weights"] if setting.precision == "fp8" else []), *(["cache"] if setting.fp8_cache else [])]
    return f" with FP8 {' and '.join(parts)}" if parts else ""


def _beside(setting: Setting, role: Role) -> str:
    """One other model of the run, with its parallel layout if it has dedicated ranks."""
    own, sharding = setting.reward_model if role == "reward model" else None, setting.sharding_of(role)
    size = f" ({own.family}, {_count(models.count(own))} parameters)" if own else ""
    place = (
        f"{sharding.dp} x ({sharding_name(sharding)})"
        if role in dict(setting.dedicated)
        else "on the actor's ranks"
    )
    return f"{role}{size}: {place}"


def _memory(found: Plan, *, narrow: bool) -> Iterator[tuple[str, str]]:
    setting = found.setting
    if setting.gpu is not None and not setting.divides():
        return
    per = f"per GPU, {gb(setting.gpu.memory_bytes)}" if setting.gpu else "per trainer rank"
    yield from _narrow_table(per, _rows(setting)) if narrow else _wide_table(per, _rows(setting))
    host = (
        f"host RAM {gb(host_bytes(setting))} a node beside its processes"
        if setting.gpu
        else f"the machine in all {gb(on_cpu(setting).peak)} of {gb(found.machine.available_bytes)} free"
    )
    yield "", f"{host}; checkpoint {gb(checkpoint_bytes(setting))} on disk"


def _rows(setting: Setting) -> list[Phase]:
    """The phases that a person sees, of the first pipeline stage and the last."""
    last = setting.train.pp - 1
    rows = [training(setting, stage) for stage in sorted({0, last})]
    if setting.num_engines:
        rows.append(logprobs(setting, last))
    if setting.num_engines and setting.gpu is not None:
        rows.append(rollout(setting, 0))
        rows += [scoring(setting, 0)] if setting.reward_model else []
    return rows


def _wide_table(per: str, rows: list[Phase]) -> Iterator[tuple[str, str]]:
    yield "MEMORY", f"{per:<26}" + "".join(f"{name:>13}" for name in _COLUMNS)
    for phase in rows:
        yield "", f"{phase.name:<26}" + "".join(f"{gb(size):>13}" for size in _cells(phase))


def _narrow_table(per: str, rows: list[Phase]) -> Iterator[tuple[str, str]]:
    """The same in 80 columns: one unit for all numbers."""
    unit, size_of = ("GB", 1e9) if max(phase.peak for phase in rows) >= 1e9 else ("MB", 1e6)
    yield "MEMORY", f"{per}; sizes in {unit}"
    yield "", " " * 18 + "".join(f"{name:>{width}}" for name, width in _NARROW.items())
    for phase in rows:
        cells = zip(_cells(phase), _NARROW.values(), strict=True)
        numbers = (f"{f'{size / size_of:.1f}' if size else '-':>{width}}" for size, width in cells)
        yield "", f"{phase.name:<18}" + "".join(numbers)


def _cells(phase: Phase) -> tuple[float, ...]:
    state = phase.gradients + phase.optimizer
    return phase.weights, state, phase.activations, phase.engine, phase.kv, phase.peak


def _time(found: Plan) -> Iterator[tuple[str, str]]:
    setting = found.setting
    assert setting.gpu is not None
    own = step_time(setting, found.swap)
    names = ("generate", "logprobs", "train", "offload", "swap") if setting.num_engines else ("train",)
    phases = ", ".join(f"{name} {seconds(getattr(own, name))}" for name in names)
    beside = f", {seconds(own.overlap)} of them at the same time" if own.overlap else ""
    step = f"{seconds(own.total)}/step (model, +-25 %), MFU {own.mfu:.0%} in training"
    yield "TIME", f"{phases}{beside} -> {step}"
    if setting.separate:
        yield "", _idle(setting, own)
    others = {gpu.name: step_time(replace(setting, gpu=gpu), found.swap) for gpu in GPUS.values()}
    told = ", ".join(f"{name} {seconds(time.total)} ({time.mfu:.0%})" for name, time in others.items())
    yield "", f"the same step elsewhere: {told}"
    batch = setting.batch
    yield (
        "",
        f"counted with {batch.mean_prompt:,.0f} + {batch.mean_response:,.0f} tokens a trajectory on average; "
        f"--mean-response says otherwise",
    )


def _idle(setting: Setting, own: StepTime) -> str:
    """Which devices wait for which, if engines have dedicated ones."""
    if not own.overlap:
        return (
            "trainer and engines wait for each other: with batch.max_lag above 0 they work at the same time"
        )
    work = {"engines": own.generate, "the trainer": own.logprobs + own.train}
    first, last = sorted(work, key=lambda side: work[side])
    share, lag = (work[last] - work[first]) / own.total, setting.max_lag
    wait = "wait" if first == "engines" else "waits"
    return f"{first} {wait} {share:.0%} of a step for {last}, with batch.max_lag = {lag}"


def _verdict(found: Plan) -> Iterator[tuple[str, str]]:
    setting = found.setting
    if found.refusal is not None:
        yield "NO", str(found.refusal)
    elif setting.gpu is not None:
        phase = fullest(setting)
        yield "OK", f"fits with {gb(setting.gpu.memory_bytes - phase.peak)} to spare, in {phase.name}"
    else:
        spare = found.machine.available_bytes - on_cpu(setting).peak
        yield "OK", f"fits with {gb(spare)} to spare"


def _batch_dict(setting: Setting) -> dict[str, Any]:
    batch = setting.batch
    return {
        "prompts": batch.prompts,
        "samples_per_prompt": batch.samples,
        "trajectories": batch.trajectories,
        "tokens_at_most": batch.trajectories * batch.longest,
        "optimizer_steps": batch.optimizer_steps,
        "off_policy_updates": batch.optimizer_steps - 1,
        "microbatches": num_microbatches(setting),
        "data_parallel": setting.train.dp,
        "engines": setting.num_engines,
        "turns": batch.turns,
        "context_tokens": batch.longest,
    }


def _phase_dict(phase: Phase) -> dict[str, Any]:
    return {name: getattr(phase, name) for name in phase.__slots__} | {"peak": phase.peak}


def _count(number: float) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,.0f}"
