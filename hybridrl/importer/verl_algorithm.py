"""Makes the section `algorithm` of a config from verl's keys, which have a meaning only in combination."""

from typing import Any

from hybridrl.errors import ConfigError
from hybridrl.importer.translation import Line, Remark
from hybridrl.importer.verl_keys import DISCOUNTS, ESTIMATORS, KL, LOSSES, PRESETS, A
from hybridrl.importer.verl_script import Found, Script

_ROLLOUT_CORRECTION = "algorithm.rollout_correction"
_OVERLONG = (
    "reward.reward_kwargs.overlong_buffer_cfg",
    "reward_model.reward_kwargs.overlong_buffer_cfg",
    "reward_model.overlong_buffer",
)


def estimator(script: Script) -> Found:
    key = "algorithm.adv_estimator"
    name = str(script.get(key, "gae"))
    if name == "grpo" and not script.get("algorithm.norm_adv_by_std_in_grpo", True):
        source = script.source("algorithm.norm_adv_by_std_in_grpo")
        yield Line("algorithm.preset", "verl/dr_grpo", source, "GRPO without the division by the std")
    elif name in PRESETS:
        yield Line("algorithm.preset", PRESETS[name], script.source(key), "with verl's numerics")
    elif name in ESTIMATORS:
        yield Line("algorithm.estimator.name", ESTIMATORS[name], script.source(key))
    else:
        yield Remark(script.source(key), "no such estimator: hybridrl algo list, or one file of your own")
    for theirs, option in DISCOUNTS.get(name, {}).items():
        if (value := script.number(theirs, 1.0)) != 1.0:
            yield Line(f"algorithm.estimator.{option}", float(value), script.source(theirs))


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
        value = float(script.number(theirs, default))
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
    if steps:
        yield Line("algorithm.correction", steps, script.source(f"{_ROLLOUT_CORRECTION}.rollout_is"))


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
