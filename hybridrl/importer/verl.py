"""Translates verl's overrides into our config: single keys by the tables of verl_keys, others by the parts
below.

A key that a script does not set has verl's default, which is written too if ours differs, so that the config
computes what the script computes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from hybridrl.config import keys, load, presets
from hybridrl.config.schema import Config
from hybridrl.errors import ConfigError
from hybridrl.importer import verl_algorithm, verl_async, verl_layout
from hybridrl.importer.overrides import Launch
from hybridrl.importer.translation import Line, Remark, Translation
from hybridrl.importer.verl_keys import CRITIC, CRITIC_REST, DIRECT, IGNORED, NO_COUNTERPART, A, M, R, To
from hybridrl.importer.verl_script import Found, Script
from hybridrl.wording import counted


def translate(launch: Launch, num_prompts: int | None = None) -> Translation:
    """
    Args:
        num_prompts: rows of the training file, which turn epochs into steps. None: not known.

    Raises:
        ConfigError: no model or data is set, or a value is not of the kind that verl takes.
    """
    if any(one.key.startswith("worker.") for one in launch.overrides):
        raise ConfigError(
            "these are keys of EasyR1, a fork of verl with names of its own: worker.actor for "
            "actor_rollout_ref.actor, data.rollout_batch_size for data.train_batch_size",
            where=f"line {launch.overrides[0].line}",
            fix="write the keys as verl has them, or start from hybridrl init",
        )
    if "sft" in launch.module.rpartition(".")[2]:
        raise ConfigError(
            f"{launch.module} trains on examples, which is not translated",
            where=f"line {launch.overrides[0].line}",
            fix="write a config for hybridrl sft: docs/sft.md",
        )
    script = Script(launch)
    found = [one for part in PARTS for one in part(script)]
    found += _steps(script, num_prompts)
    lines = [one for one in found if isinstance(one, Line)]
    rest, ignored = _untranslated(script)
    missing = [*launch.remarks, *(one for one in found if isinstance(one, Remark)), *rest]
    named = launch.config_name.removesuffix(".yaml")
    if named:
        (ignored if named in _CONFIG_FILES else missing).append(_config_file(named))
    kept = _ordered(_needed(lines))
    no_line = _no_line(script, kept, (*missing, *ignored))
    return Translation(tuple(kept), tuple(missing), tuple(ignored), tuple(no_line))


_KEY = re.compile(r"[\w@./-]+")


def _no_line(script: Script, lines: Sequence[Line], remarks: Sequence[Remark]) -> list[Remark]:
    """The overrides that no line or remark names."""
    named = [one.source for one in (*lines, *remarks) if not one.source.startswith("default of ")]
    said = {word for one in named for word in _KEY.findall(one)}
    return [
        Remark(one.text, "as here by default, or part of another line")
        for one in script.by_key.values()
        if one.key not in said
    ]


_CONFIG_FILES = {
    "ppo_trainer",
    "ppo_megatron_trainer",
    "fully_async_ppo_trainer",
    "fully_async_ppo_megatron_trainer",
}
"""The files of verl whose defaults are those of the tables."""


def _config_file(name: str) -> Remark:
    if name in _CONFIG_FILES:
        return Remark(f"--config-name={name}", "verl's defaults are those of this file")
    why = "what this file sets is not in the script: import it too, as YAML, and compare"
    return Remark(f"--config-name={name}", why)


def _direct(script: Script, table: Mapping[str, To] = DIRECT) -> Found:
    for key, to in table.items():
        value = script.get(key, to.default)
        if value is not None:
            yield Line(to.key, _converted(script, key, to, value), script.source(key), to.note)


def _converted(script: Script, key: str, to: To, value: Any) -> Any:
    try:
        return to.convert(value)
    except (TypeError, ValueError) as error:
        place = f"line {script.by_key[key].line}"
        raise ConfigError(
            f"{key}={value} cannot become {to.key}", where=place, fix="give a number"
        ) from error


def _model_and_data(script: Script) -> Found:
    for key in (f"{M}.path", "data.train_files"):
        if key not in script.by_key or script.by_key[key].unknown:
            unknown = script.by_key[key].unknown if key in script.by_key else ""
            unknown = unknown or " ".join(script.launch.unread)
            why = (
                f"only a run of the script could tell {unknown}" if unknown else "the script does not set it"
            )
            raise ConfigError(f"no {key}", where=why, fix=f"add {key}=... at the end of the call")
        if script.by_key[key].value in (None, "", []):
            why = f"line {script.by_key[key].line} leaves it empty"
            raise ConfigError(f"no {key}", where=why, fix=f"add {key}=... at the end of the call")
    yield from _files(script, "data.val_files", "data.heldout")
    yield from _files(script, "data.train_files", "data.train")


def _files(script: Script, key: str, ours: str) -> Found:
    files = script.get(key)
    if isinstance(files, list):
        files = files[0] if len(files) == 1 else files
    if files:
        yield Line(ours, files, script.source(key))


def _pictures(script: Script) -> Found:
    key, frozen = "data.image_key", f"{A}.freeze_vision_tower"
    field = script.get(key)
    if field:
        longest = script.number("data.max_prompt_length", 512)
        note = "check: verl has no limit but that of the prompt; a larger picture is made smaller"
        yield Line("data.images.field", str(field), script.source(key))
        yield Line("data.images.max_tokens", min(1024, longest // 2), script.source(key), note)
    if script.get(frozen):
        if field:
            yield Line("actor.vision.mode", "frozen", script.source(frozen))
        else:
            yield Remark(script.source(frozen), "without data.image_key nothing of the tower is trained")


def _reward(script: Script) -> Found:
    prefix = "reward." if "reward.custom_reward_function.path" in script.by_key else ""
    source = f"{prefix}custom_reward_function.path"
    if script.get(source):
        script.get(f"{prefix}custom_reward_function.name")
        why = "a reward is module:function of (answer, row, *, answer_field): wrap it, then set reward.name"
        yield Remark(script.source(source), why)
        note = "check: fill in module:function that wraps it"
        yield Line("reward.name", _TO_FILL_IN, script.source(source), note)
    else:
        note = "check: verl picks a scorer by column data_source"
        yield Line("reward.name", "math_verify", "scorer by data_source", note)
    yield Line("reward.answer_field", "reward_model.ground_truth", "reward_model.ground_truth of a row")


_TO_FILL_IN = "fill_in.module:function"
"""A reward that no machine has: a run with it is refused until a person names the right one."""


def _optimizer(script: Script) -> Found:
    clip = "clip_grad" if f"{A}.optim.clip_grad" in script.by_key or script.is_megatron else "grad_clip"
    key = f"{A}.optim.clip_grad" if clip == "clip_grad" else f"{A}.grad_clip"
    yield Line("actor.optimizer.clip_grad_norm", float(script.number(key, 1.0)), script.source(key))
    for name in ("lr_decay_style", "lr_scheduler_type", "warmup_style"):
        key = f"{A}.optim.{name}"
        if (style := script.get(key)) in {"linear", "cosine"}:
            yield Line("actor.optimizer.schedule", style, script.source(key))
        elif style not in {None, "constant"}:
            yield Remark(script.source(key), "choose actor.optimizer.schedule: constant, linear or cosine")
    lr = float(script.number(f"{A}.optim.lr", 1e-6))
    lowest = script.number(f"{A}.optim.min_lr") or lr * float(script.number(f"{A}.optim.min_lr_ratio", 0.0))
    if lowest:
        yield Line("actor.optimizer.min_lr", float(lowest), "min_lr or min_lr_ratio")


def _microbatch(script: Script) -> Found:
    longest = script.number("data.max_prompt_length", 512) + script.number("data.max_response_length", 512)
    samples, key = script.number(f"{A}.ppo_micro_batch_size_per_gpu"), f"{A}.ppo_max_token_len_per_gpu"
    dynamic = script.get(f"{A}.use_dynamic_bsz", False)
    if dynamic or samples is None:
        tokens, note = script.number(key, 16384), "use_dynamic_bsz: packed by tokens" if dynamic else ""
    else:
        key, tokens = f"{A}.ppo_micro_batch_size_per_gpu", samples * longest
        note = f"{counted(samples, 'sample')} of at most {counted(longest, 'token')}"
    if tokens < longest:
        tokens, note = longest, "the longest trajectory: none is split"
    yield Line("actor.microbatch_tokens", tokens, script.source(key), note)


_REPLAYS = {"R2": "old_logp", "R3": "rollout"}


def _recompute(script: Script) -> Found:
    key = f"{M}.enable_gradient_checkpointing"
    on = script.get(key, True)
    if script.is_megatron:
        key = f"{A}.megatron.override_transformer_config.recompute_granularity"
        on = script.get(key) or False
    how = on if on in ("full", "selective") else "full" if on else "none"
    yield Line("actor.recompute", how, script.source(key))


def _replay(script: Script) -> Found:
    key = f"{A}.router_replay.mode"
    if (mode := script.get(key)) in _REPLAYS:
        yield Line("actor.moe.router_replay", _REPLAYS[mode], script.source(key))


def _engine(script: Script) -> Found:
    key = f"{R}.name"
    if (name := script.get(key, "sglang")) not in ("sglang", "vllm"):
        yield Remark(script.source(key), "rollout.engine knows sglang and vllm")
    if name == "vllm":
        yield Line("rollout.engine", "vllm", script.source(key))
        note = "check: the interpreter of an environment with vLLM; make setup-vllm makes this one"
        yield Line("rollout.python", ".venv-vllm/bin/python", script.source(key), note)


def _adapters(script: Script) -> Found:
    for section in (f"{M}.lora_", f"{M}.lora."):  # FSDP's keys, then Megatron's
        if rank := script.number(f"{section}rank", 0):
            alpha = float(script.number(f"{section}alpha", 16))
            yield Line("actor.lora.rank", rank, script.source(f"{section}rank"))
            yield Line("actor.lora.alpha", alpha, script.source(f"{section}alpha"))


def _evaluation(script: Script) -> Found:
    key = f"{R}.val_kwargs.do_sample"
    sampled = script.get(key, False)
    temperature = script.number(f"{R}.val_kwargs.temperature", 0.0)
    note = "" if sampled or not temperature else "greedy: do_sample is False"
    value = float(temperature) if sampled else 0.0
    yield Line("evaluate.temperature", value, script.source(f"{R}.val_kwargs.temperature"), note)
    top_p = script.number(f"{R}.val_kwargs.top_p", 1.0)
    top_k = script.number(f"{R}.val_kwargs.top_k", -1)
    if value and top_p < 1:
        yield Line("evaluate.top_p", float(top_p), script.source(f"{R}.val_kwargs.top_p"))
    if value and top_k > 0:
        yield Line("evaluate.top_k", int(top_k), script.source(f"{R}.val_kwargs.top_k"))


def _has_critic(script: Script) -> bool:
    return script.get("algorithm.adv_estimator", "gae") == "gae"


def _critic(script: Script) -> Found:
    if _has_critic(script):
        yield from _direct(script, CRITIC)
        yield Line("critic.loss.name", "clipped", script.source("critic.cliprange_value"))


PARTS: Sequence[Callable[[Script], Found]] = (
    _model_and_data,
    _pictures,
    verl_async.batch,
    _direct,
    _engine,
    _reward,
    verl_algorithm.estimator,
    verl_algorithm.loss,
    verl_algorithm.kl,
    verl_algorithm.dynamic_sampling,
    verl_algorithm.overlong,
    verl_algorithm.correction,
    verl_async.asynchronous,
    _optimizer,
    _microbatch,
    _recompute,
    verl_layout.parallel,
    _replay,
    _adapters,
    _evaluation,
    _critic,
)


def _steps(script: Script, num_prompts: int | None) -> Found:
    """Length of the run, and the warm-up, which verl counts in policy updates and we in optimizer steps."""
    prompts = verl_async.prompts_per_update(script)
    updates = max(1, prompts // script.count(f"{A}.ppo_mini_batch_size", 256)) * script.number(
        f"{A}.ppo_epochs", 1
    )
    steps, key = verl_async.steps(script, num_prompts)
    if steps is None:
        yield Remark(
            script.source(key), f"run.steps is epochs x rows // {prompts}: --prompts ROWS works it out"
        )
    else:
        yield Line("run.steps", steps, script.source(key))
    warmup, ratio = script.number(f"{A}.optim.lr_warmup_steps", -1), f"{A}.optim.lr_warmup_steps_ratio"
    share = script.number(ratio, 0.0)
    if warmup <= 0 and share and steps is None:
        yield Remark(script.source(ratio), "actor.optimizer.warmup_steps needs run.steps: --prompts ROWS")
    count = warmup if warmup > 0 else int(share * (steps or 0))
    if count:
        key = f"{A}.optim.lr_warmup_steps" if warmup > 0 else ratio
        note = f"optimizer steps: verl counts policy updates, each of {updates}" if updates > 1 else ""
        yield Line("actor.optimizer.warmup_steps", count * updates, script.source(key), note)


def _untranslated(script: Script) -> tuple[list[Remark], list[Remark]]:
    """The keys that are left: those without a counterpart, and those without an effect."""
    missing, ignored = [], []
    for one in script.launch.overrides:
        if script.by_key[one.key] is not one:
            ignored.append(Remark(one.text, f"a later {one.key} takes its place"))
    for key, one in script.by_key.items():
        why, matters = _verdict(key, one.value, has_critic=_has_critic(script))
        if one.unknown and (matters or key in script.used):
            missing.append(
                Remark(one.text, f"only a run of the script could tell {one.unknown}: set it by hand")
            )
        elif key not in script.used:
            (missing if matters else ignored).append(Remark(one.text, why))
    return missing, ignored


def _verdict(key: str, value: Any, *, has_critic: bool) -> tuple[str, bool]:
    """Why a key was not translated, and whether that changes the result."""
    if key.startswith("critic.") and not has_critic:
        return "estimators other than gae have no critic", False
    for pattern, harmless, why in NO_COUNTERPART:
        if fnmatchcase(key, pattern):
            return ("as here", False) if value in harmless else (why, True)
    for pattern, why in IGNORED:
        if fnmatchcase(key, pattern):
            return why, False
    return CRITIC_REST if key.startswith("critic.") else "not a key that this importer knows", True


_ALWAYS = {"run.name", "batch.prompts_per_step"}
"""Keys that are written even with our default: a reader looks for them first."""


def _needed(lines: Sequence[Line]) -> list[Line]:
    """The lines without those that repeat our default or the preset."""
    wanted = {line.key: line.value for line in lines}
    preset = wanted.get("algorithm.preset")
    base = _base(presets.PRESETS[preset].algorithm if preset else {})
    other = {
        plugin
        for plugin in ("algorithm.loss", "algorithm.estimator", "critic.loss")
        if wanted.get(f"{plugin}.name", base[f"{plugin}.name"]) != base[f"{plugin}.name"]
    }

    def says_more(line: Line) -> bool:
        section = line.key.rpartition(".")[0]
        if section in other or line.key in _ALWAYS:
            return True
        return line.key not in base or base[line.key] != _plain(line.value)

    kept = [line for line in lines if says_more(line)]
    # An option needs the name of its plug-in
    named = {line.key for line in kept}
    return [
        line
        for line in lines
        if line in kept
        or (line.key.endswith(".name") and any(key.startswith(f"{line.key[:-5]}.") for key in named))
    ]


def _base(algorithm: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of a config that sets nothing but a preset."""
    least = {
        "model": "",
        "data": {"train": "-"},
        "reward": "-",
        "run": {"name": ""},
        "algorithm": dict(algorithm),
    }
    return {key: _plain(value) for key, value in load.values(Config.model_validate(least))}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _ordered(lines: Sequence[Line]) -> list[Line]:
    """The lines in the order of the schema, the section `run` last."""
    place = {key.name: at for at, key in enumerate(keys.all_keys())}

    def at(line: Line) -> tuple[bool, int]:
        plugin = line.key.rpartition(".")[0] + ".name"
        return line.key.startswith("run."), place[line.key if line.key in place else plugin]

    return sorted(lines, key=at)
