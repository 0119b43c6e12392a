"""Makes the section `algorithm` of a config from verl's keys, which have a meaning only in combination."""

import math
import re
from typing import Any

from hybridrl.errors import ConfigError
from hybridrl.importer.translation import Line, Remark
from hybridrl.importer.verl_keys import DISCOUNTS, ESTIMATORS, KL, LOSSES, PRESETS, A
from hybridrl.importer.verl_script import Found, Script

_ROLLOUT_CORRECTION = "algorithm.rollout_correction"
_BY_STD = "algorithm.norm_adv_by_std_in_grpo"
_READS_BY_STD = {"grpo", "grpo_vectorized", "grpo_passk", "gdpo"}
_OVERLONG = (
    "reward.reward_kwargs.overlong_buffer_cfg",
    "reward_model.reward_kwargs.overlong_buffer_cfg",
    "reward_model.overlong_buffer",
)


def estimator(script: Script) -> Found:
    key = "algorithm.adv_estimator"
    name = str(script.get(key, "gae"))
    without_std = not script.get(_BY_STD, True) if name in _READS_BY_STD else False
    if without_std and name in {"grpo", "grpo_vectorized"}:
        source = script.source(_BY_STD)
        yield Line("algorithm.preset", "verl/dr_grpo", source, "GRPO without the division by the std")
    elif name in PRESETS:
        yield Line("algorithm.preset", PRESETS[name], script.source(key), "with verl's numerics")
    elif name in ESTIMATORS:
        yield Line("algorithm.estimator.name", ESTIMATORS[name], script.source(key))
    else:
        yield Remark(script.source(key), "no such estimator: hybridrl algo list, or one file of your own")
    if without_std and name == "grpo_passk":
        yield Line("algorithm.estimator.scale_by_std", False, script.source(_BY_STD))
    if name == "gdpo":
        yield from _parts(script, without_std)
    for theirs, option in DISCOUNTS.get(name, {}).items():
        if (value := script.number(theirs, 1.0)) != 1.0:
            yield Line(f"algorithm.estimator.{option}", float(value), script.source(theirs))


def _parts(script: Script, without_std: bool) -> Found:
    """The parts of the reward that gdpo normalises, and their weights in the order of their names."""
    key, weights = "algorithm.gdpo_reward_keys", script.get("algorithm.gdpo_reward_weights")
    names = script.get(key)
    if without_std:
        yield Remark(script.source(_BY_STD), "gdpo divides every part by its std here")
    if not isinstance(names, list):
        yield Remark(script.source(key), "verl refuses gdpo without it: name the parts of the reward")
        return
    yield Remark(
        script.source(key), f"the reward has to return exactly these parts: {', '.join(map(str, names))}"
    )
    if isinstance(weights, list) and len(weights) == len(names):
        in_order = [float(weight) for _, weight in sorted(zip(names, weights, strict=True))]
        source = script.source("algorithm.gdpo_reward_weights")
        note = "by the names of the parts, in alphabetical order"
        yield Line("algorithm.estimator.weights", in_order, source, note)


def loss(script: Script) -> Found:
    key = f"{A}.policy_loss.loss_mode"
    mode = str(script.get(key, "vanilla")).replace("-", "_")
    aggregate = str(script.get(f"{A}.loss_agg_mode", "token-mean")).replace("-", "_")
    if mode not in LOSSES:
        yield Remark(script.source(key), "choose algorithm.loss by hand: hybridrl algo list")
        mode = "vanilla"
    chosen = LOSSES[mode]
    yield Line("algorithm.loss.name", chosen.name, script.source(key))
    for theirs, (option, default) in chosen.options.items():
        value = script.number(theirs, default)
        if value is None:
            raise ConfigError(
                f"loss_mode={mode} without {theirs}", where="verl refuses it too", fix=f"set {theirs}"
            )
        value = float(value)
        yield Line(f"algorithm.loss.{option}", value, script.source(theirs))
    for option, setting in chosen.always.items():
        yield Line(f"algorithm.loss.{option}", setting, script.source(key))
    note = (
        "" if chosen.aggregate in {None, aggregate} else f"{mode} has no other, whatever loss_agg_mode says"
    )
    yield Line(
        "algorithm.aggregate", chosen.aggregate or aggregate, script.source(f"{A}.loss_agg_mode"), note
    )


def kl(script: Script) -> Found:
    in_loss, in_reward = (
        script.get(f"{A}.use_kl_loss", False),
        script.get("algorithm.use_kl_in_reward", False),
    )
    if in_loss and in_reward:
        why = "one KL term a run: the one in the loss was taken"
        yield Remark(script.source("algorithm.use_kl_in_reward"), why)
    if in_loss:
        where, weight, kind = "loss", (f"{A}.kl_loss_coef", 0.001), (f"{A}.kl_loss_type", "low_var_kl")
    elif in_reward:
        where, weight, kind = "reward", ("algorithm.kl_ctrl.kl_coef", 0.001), ("algorithm.kl_penalty", "kl")
        yield from _adaptive_kl(script)
    else:
        yield from _kl_of_older_verl(script)
        return
    form = KL.get(str(script.get(*kind)))
    if form is None:
        yield Remark(script.source(kind[0]), "choose algorithm.kl.estimator by hand: hybridrl algo list")
    yield Line("algorithm.kl.coefficient", float(script.number(*weight)), script.source(weight[0]))
    yield Line("algorithm.kl.estimator", form or "k3_clamped", script.source(kind[0]))
    yield Line("algorithm.kl.in", where, "use_kl_loss" if in_loss else "use_kl_in_reward")


def _kl_of_older_verl(script: Script) -> Found:
    """A coefficient without a switch: before the switch was there, verl added this KL to the reward."""
    key = "algorithm.kl_ctrl.kl_coef"
    if "algorithm.use_kl_in_reward" not in script.by_key and script.number(key, 0.0):
        why = (
            "nothing switches it on; a verl before use_kl_in_reward adds it to the reward: if the script is "
            "for one, set algorithm.kl: {coefficient, estimator: k1, in: reward}"
        )
        yield Remark(script.source(key), why)


def _adaptive_kl(script: Script) -> Found:
    if script.get("algorithm.kl_ctrl.type", "fixed") == "adaptive":
        for name, ours, default in (("target_kl", "target", 0.1), ("horizon", "horizon", 10_000)):
            key = f"algorithm.kl_ctrl.{name}"
            yield Line(f"algorithm.kl.{ours}", script.number(key, default), script.source(key))


def dynamic_sampling(script: Script) -> Found:
    key = "algorithm.filter_groups.enable"
    if script.get(key, False):
        rounds = script.number("algorithm.filter_groups.max_num_gen_batches", 0)
        note = "" if rounds > 0 else "verl samples without end, here at most 10 rounds"
        yield Line("algorithm.dynamic_sampling.max_rounds", rounds or 10, script.source(key), note)


def overlong(script: Script) -> Found:
    for prefix in _OVERLONG:
        if not script.get(f"{prefix}.enable", False):
            continue
        limit = script.number("data.max_response_length", 512)
        penalty = float(script.number(f"{prefix}.penalty_factor", 1.0))
        shape = {
            "name": "overlong",
            "limit": limit,
            "margin": script.number(f"{prefix}.len"),
            "penalty": penalty,
        }
        yield Line("algorithm.shaping", [shape], script.source(f"{prefix}.len"))


def correction(script: Script) -> Found:
    level = script.get(f"{_ROLLOUT_CORRECTION}.rollout_is")
    bound = script.get(f"{_ROLLOUT_CORRECTION}.rollout_is_threshold", 2.0)
    steps: list[Any] = []
    if script.get(f"{_ROLLOUT_CORRECTION}.bypass_mode", False):
        steps.append("bypass")
    if cap := script.number(f"{A}.tis_imp_ratio_cap"):
        level, bound = (level or "token", float(cap)) if cap > 0 else (level, bound)
    if level:
        steps.append(_weight(str(level), bound))
    if level and script.get(f"{_ROLLOUT_CORRECTION}.rollout_is_batch_normalize", False):
        steps.append("batch_normalise")
    rejected, key = _rejections(script), f"{_ROLLOUT_CORRECTION}.rollout_rs"
    steps += rejected
    if steps:
        option = "rollout_is" if level else "bypass_mode"
        source = script.source(key if rejected else f"{_ROLLOUT_CORRECTION}.{option}")
        note = "verl also takes what is rejected out of the denominators" if rejected else ""
        yield Line("algorithm.correction", steps, source, note)


def _rejections(script: Script) -> list[dict[str, Any]]:
    """The criteria of rollout_rs, each with its bound; those of an older verl stay untranslated.

    Raises:
        ConfigError: verl refuses the bounds.
    """
    key = f"{_ROLLOUT_CORRECTION}.rollout_rs"
    options = (
        [one.strip() for one in str(script.by_key[key].value or "").split(",")]
        if key in script.by_key
        else []
    )
    matches = [_CRITERION.fullmatch(option) for option in options]
    if not matches or not all(matches):
        return []
    script.get(key)
    bounds = str(script.get(f"{key}_threshold", "")).split(",")
    bounds = bounds * len(options) if len(bounds) == 1 else bounds
    try:
        found = [(one[1], one[2]) for one in matches if one]
        return [
            _criterion(level, divergence, bound.strip())
            for (level, divergence), bound in zip(found, bounds, strict=True)
        ]
    except ValueError as error:
        what = f"{key}_threshold={','.join(bounds)} does not bound {', '.join(options)}"
        raise ConfigError(what, fix="give one bound for each, lowest_highest for k1") from error


def _criterion(level: str, divergence: str, bound: str) -> dict[str, Any]:
    """
    Args:
        bound: of k1 two ratios, as 0.999_1.001, or one, whose inverse is the other; else the highest value.
    """
    named = {"name": "reject", "divergence": divergence, "level": _LEVELS[level]}
    if divergence != "k1":
        return {**named, "highest": float(bound)}
    *lowest, highest = map(float, bound.split("_"))
    low = lowest[0] if lowest else 1 / highest
    return {**named, "lowest": math.log(low), "highest": math.log(highest)}


_CRITERION = re.compile(r"(token|seq_sum|seq_mean|seq_max)_(k[123])")
_LEVELS = {"token": "token"} | {f"seq_{name}": f"sequence_{name}" for name in ("sum", "mean", "max")}


def _weight(level: str, bound: Any) -> dict[str, Any]:
    """The correction of a bound: one number is a truncation, "lowest_highest" is a mask.

    Raises:
        ConfigError: the bounds are not numbers.
    """
    try:
        *lowest, highest = map(float, str(bound).split("_"))
    except ValueError as error:
        key = f"{_ROLLOUT_CORRECTION}.rollout_is_threshold"
        raise ConfigError(f"{key}={bound} is neither a number nor lowest_highest", fix="give 2.0") from error
    if lowest:
        return {"name": "icepop", "lowest": lowest[0], "highest": highest}
    return {"name": f"{level}_is", "cap": highest}
