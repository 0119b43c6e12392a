"""Refuses an algorithm without a learning signal, whatever the rewards: a run would train on zeros to its
end.

Its shaping, estimator and policy loss are tried on synthetic batches before a run. Nothing is concluded from
a plug-in that refuses these batches (their rewards, say); code from outside that fails on any batch is
refused.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import Advantage, AdvantageEstimator, OneRank
from hybridrl.algorithms.columns import on_ranks
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.samples import RaggedBatch, ragged_batch
from hybridrl.algorithms.shaping_chain import load_shaping
from hybridrl.algorithms.trial import loss_and_gradient
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.section import PluginConfig
from hybridrl.errors import ConfigError, HybridRLError, UserCodeError
from hybridrl.outside import is_outside, user_code

_LARGEST_GROUP = 8
_MAX_RESPONSE_TOKENS = 16
_WRONG_ANYWHERE = (TypeError, NameError, AttributeError, ImportError, SyntaxError, SystemExit)


def refuse_mute(config: AlgorithmConfig) -> None:
    """
    Raises:
        ConfigError: every advantage is 0, or the policy loss has no gradient, in all batches that were tried;
            or an unknown plug-in or option.
        UserCodeError: code from outside does not run.
    """
    if config.shaping and _is_mute(_shaped(config)):
        named = [PluginConfig.model_validate(entry).name for entry in config.shaping]
        what = f"after shaping {', '.join(named)} every reward is the same"
        raise ConfigError(what, where="algorithm.shaping", fix="change its options, or leave it out")
    if _is_mute(_advantages(config)):
        raise ConfigError(
            f"estimator {config.estimator.name} makes every advantage 0, whatever the rewards of "
            f"{config.samples_per_prompt} answers to a prompt",
            where="algorithm.estimator",
            fix="change its options, or use another",
        )
    if _is_mute(_gradients(config)):
        raise ConfigError(
            f"policy loss {config.loss.name} with its corrections has no gradient",
            where="algorithm.loss",
            fix="change their options, or use others",
        )


def _is_mute(tried: Iterator[Tensor | None]) -> bool:
    found = [value for value in tried if value is not None]
    return bool(found) and not any(bool(value.any()) for value in found)


def _batches(config: AlgorithmConfig) -> Iterator[RaggedBatch]:
    """Batches with rewards of many magnitudes above 0, small ones above 0, rewards of 0 and 1, and of many
    magnitudes below 0."""
    size = min(config.samples_per_prompt, _LARGEST_GROUP)
    for seed in range(4):
        batch = ragged_batch(seed, sizes=(size,) * 6)
        draw = batch.reward_N
        large = draw.abs() * 10.0 ** (8 * draw).round().clamp(-6, 6)
        batch.reward_N = (large, draw.abs(), (draw > 0) * 1.0, -large)[seed]
        yield batch


def _shaped(config: AlgorithmConfig) -> Iterator[Tensor | None]:
    """Differences of the shaped rewards from the first one."""
    for batch in _batches(config):
        reward_N = _reward(config, batch)
        yield None if reward_N is None else reward_N - reward_N[0]


def _reward(config: AlgorithmConfig, batch: RaggedBatch) -> Tensor | None:
    shaping = load_shaping(config.shaping, where="algorithm.shaping")
    names = [PluginConfig.model_validate(entry).name for entry in config.shaping]

    def shaped() -> Tensor:
        return _scalars(
            shaping(batch.reward_N, batch.group_N, **batch.arguments(*shaping.needs)), batch.reward_N
        )

    return _tried(shaped, "algorithm.shaping", *names)


def _advantages(config: AlgorithmConfig) -> Iterator[Tensor | None]:
    for batch in _batches(config):
        reward_N, estimator = _reward(config, batch), load_estimator(config)  # new: it may keep a state
        if reward_N is not None:
            advantage = partial(_advantage, estimator, batch, reward_N)
            yield _tried(advantage, "algorithm.estimator", config.estimator.name)


def _advantage(estimator: AdvantageEstimator, batch: RaggedBatch, reward_N: Tensor) -> Tensor:
    arguments = batch.arguments(*estimator.needs)
    if not on_ranks(estimator.needs):
        return _scalars(estimator(reward_N=reward_N, group_N=batch.group_N, **arguments), reward_N)
    arguments |= {"tokens": batch.tokens, "reduce": OneRank()}
    made = estimator(reward_N=reward_N, group_N=batch.group_N, **arguments)
    if not isinstance(made, Advantage):
        raise TypeError(f"it returned {type(made).__name__}, not an Advantage")
    return made.advantage_T


def _scalars(value: Any, reward_N: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != reward_N.shape:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise TypeError(f"it returned {type(value).__name__}{shape}, not a tensor [{len(reward_N)}]")
    return value


def _gradients(config: AlgorithmConfig) -> Iterator[Tensor | None]:
    """Gradients of the policy loss alone, for a policy that has moved, and for the policy that generated the
    answers."""
    plain = config.kl.model_copy(update={"coefficient": 0.0})
    alone = config.model_copy(update={"kl": plain, "entropy_coefficient": 0.0})
    objective = Objective(alone, max_response_tokens=_MAX_RESPONSE_TOKENS)
    for batch in _batches(config):
        yield _tried(partial(_gradient, objective, batch), "algorithm.loss", config.loss.name)
        batch.columns |= dict.fromkeys(("logp", "rollout_logp"), batch.columns["old_logp"])
        yield _tried(partial(_gradient, objective, batch), "algorithm.loss", config.loss.name)


def _gradient(objective: Objective, batch: RaggedBatch) -> Tensor:
    return loss_and_gradient(objective, batch, batch.totals)[1]


def _tried(function: Callable[[], Tensor], key: str, *names: str) -> Tensor | None:
    """What the function returns, or None if it failed in a way that may be due to these batches only.

    Args:
        names: names of its plug-ins. If one is from outside, it is blamed for a failure, also for that of its
            result.

    Raises:
        UserCodeError: code from outside is wrong on any batch.
    """
    blamed = next((name for name in names if is_outside(name)), "")
    try:
        with user_code(blamed, key=key, where=key):
            return function()
    except (ValueError, HybridRLError) as error:
        if isinstance(error, UserCodeError) and isinstance(error.__cause__, _WRONG_ANYWHERE):
            raise
        return None
