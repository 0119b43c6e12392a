"""Whether an algorithm suits answers of older policies. The module imports no torch."""

from hybridrl.algorithms.columns import Column
from hybridrl.algorithms.declared import declared
from hybridrl.algorithms.needs import Needs
from hybridrl.config.schema import AlgorithmConfig, Config

_MOST = 1
"""Largest lag at which an objective without trust region is known to train."""


def lag_warning(cfg: Config) -> str | None:
    """Why answers of batch.max_lag updates ago may ruin the policy; None if there is no reason."""
    if cfg.batch.max_lag <= _MOST or compares_with_behaviour(cfg.algorithm):
        return None
    loss = cfg.algorithm.loss.name
    return (
        f"batch.max_lag = {cfg.batch.max_lag}, but loss {loss} does not compare the policy with the one that "
        "sampled the answers: nothing bounds how far it has moved since; set algorithm.correction=[token_is]"
        f"{' or [bypass]' if 'old_logp' in _loss_columns(cfg.algorithm) else ''}, or batch.max_lag=1"
    )


def mismatch_warning(cfg: Config) -> str | None:
    """Why FP8 in the engines may ruin the policy; None if nothing is FP8, or the loss makes up for it."""
    rollout = cfg.rollout
    keys = {"rollout.precision": rollout.precision, "rollout.kv_cache_precision": rollout.kv_cache_precision}
    fp8 = [f"{key} = fp8" for key, value in keys.items() if value == "fp8"]
    if not fp8 or compares_with_behaviour(cfg.algorithm):
        return None
    return (
        f"{' and '.join(fp8)}: engines sample from another policy than the one in training, and loss "
        f"{cfg.algorithm.loss.name} does not compare the two; set algorithm.correction=[token_is], which "
        "weighs each token by the ratio of its probabilities, and follow training/rollout_logp_diff_max"
    )


def compares_with_behaviour(algorithm: AlgorithmConfig) -> bool:
    """Whether loss or corrections use the probabilities with which the engine sampled."""
    needs = Needs.of(algorithm)
    if needs.bypasses:  # old_logp is the engine's
        compares = not _loss_columns(algorithm).isdisjoint({"old_logp", "rollout_logp"})
        return compares or len(algorithm.correction) > 1
    return "rollout_logp" in needs.objective


def _loss_columns(algorithm: AlgorithmConfig) -> frozenset[Column]:
    loss = declared("policy_loss", algorithm.loss.name, algorithm.loss.options, where="algorithm.loss")
    return frozenset(loss.needs)
