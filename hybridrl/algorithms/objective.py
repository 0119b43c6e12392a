"""The objective of one minibatch: policy loss, KL to the reference and entropy bonus, as shares that add up.

The trainer sums the scalars over microbatches and ranks; every denominator is of the whole minibatch.
Shape letters: T packed tokens of one microbatch.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hybridrl.algorithms.base import TOKEN_COLUMNS, Column, Metrics, Tokens, Totals, argument
from hybridrl.algorithms.plugins import build
from hybridrl.algorithms.ratios import log_ratio
from hybridrl.algorithms.sequences import masked
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import ConfigError


class Objective:
    """loss + kl.coefficient * KL - entropy_coefficient * entropy, each aggregated in the configured mode."""

    def __init__(self, config: AlgorithmConfig, *, max_response_tokens: int | None = None) -> None:
        """
        Args:
            max_response_tokens: rollout.max_response_tokens; seq_mean_token_sum_norm divides by it.

        Raises:
            ConfigError: an unknown plug-in or option; `where` is its config key.
        """
        self.loss = build("policy_loss", config.loss.name, config.loss.options, where="algorithm.loss")
        self.aggregate = _aggregate(config.aggregate, max_response_tokens)
        self.kl = build("kl", config.kl.estimator, {}, where="algorithm.kl.estimator")
        self.kl_coefficient = config.kl.coefficient if config.kl.place == "loss" else 0.0
        self.entropy_coefficient = config.entropy_coefficient
        _check_token_columns(self.loss, "algorithm.loss")

    @property
    def columns(self) -> frozenset[Column]:
        """Token columns to call it with; old_logp is among them because the first ratio is checked to be
        1."""
        kl = self.kl.needs | {"ref_logp"} if self.kl_coefficient else frozenset()
        return frozenset(self.loss.needs | kl | {"old_logp"})

    def __call__(
        self,
        logp_T: Tensor,
        entropy_T: Tensor | None,
        columns: Mapping[str, Tensor],
        advantage_T: Tensor,
        tokens: Tokens,
        totals: Totals,
    ) -> tuple[Tensor, Metrics]:
        """This microbatch's share of the minibatch's objective, to minimise, and its share of the metrics.

        Args:
            logp_T: float [T], with a gradient; any value where the mask is False.
            entropy_T: float [T], with a gradient if the entropy coefficient is not 0; None: not reported.
            columns: name ("old_logp") to column, without gradients; at least `self.columns`.
            advantage_T: float [T], without a gradient.

        Raises:
            ValueError: a column is missing.
        """
        missing = self.columns - set(columns)
        if missing:
            raise ValueError(f"columns {sorted(missing)} are missing, got {sorted(columns)}")
        # Whatever stands outside the mask, inf included, must not reach a gradient as 0 * inf.
        logp_T = masked(logp_T, tokens)
        columns = {name: masked(columns[name], tokens) for name in self.columns}
        outcome = self.loss(
            logp_T=logp_T, advantage_T=advantage_T, tokens=tokens, **_pick(self.loss, columns)
        )
        policy_loss = self.aggregate(outcome.loss_T, tokens, totals)
        metrics = _ratio_metrics(logp_T, columns["old_logp"], tokens, totals)
        metrics.sum["actor/pg_loss"] = policy_loss.detach()
        for name, column_T in outcome.mean.items():
            metrics.sum[name] = _token_mean(column_T, tokens, totals)
        total = policy_loss
        if self.kl_coefficient:
            kl_T = self.kl(logp_T=logp_T, ref_logp_T=columns["ref_logp"], **_pick(self.kl, columns))
            kl_loss = self.aggregate(kl_T, tokens, totals)
            metrics.sum["actor/kl_loss"] = kl_loss.detach()
            metrics.max["actor/kl_coef"] = torch.tensor(self.kl_coefficient, device=logp_T.device)
            total = total + self.kl_coefficient * kl_loss
        if entropy_T is not None:
            metrics.sum["actor/entropy"] = _token_mean(entropy_T, tokens, totals)
        if self.entropy_coefficient:
            if entropy_T is None:
                raise ValueError(
                    f"entropy_coefficient = {self.entropy_coefficient} without an entropy column"
                )
            total = total - self.entropy_coefficient * self.aggregate(entropy_T, tokens, totals)
        return total, metrics


def _aggregate(name: str, max_response_tokens: int | None) -> Any:
    options = {}
    if name == "seq_mean_token_sum_norm":
        if max_response_tokens is None:
            raise ConfigError(
                f"{name} divides by the longest response allowed, which was not given",
                where="algorithm.aggregate",
                fix="Objective(config, max_response_tokens=rollout.max_response_tokens)",
            )
        options = {"max_response_tokens": max_response_tokens}
    return build("aggregate", name, options, where="algorithm.aggregate")


def _check_token_columns(loss: Any, where: str) -> None:
    scalars = set(loss.needs) - TOKEN_COLUMNS
    if scalars:
        raise ConfigError(f"a policy loss sees token columns only, not {sorted(scalars)}", where=where)


def _pick(plugin: Any, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {argument(c): columns[c] for c in plugin.needs}


def _token_mean(value_T: Tensor, tokens: Tokens, totals: Totals) -> Tensor:
    return masked(value_T.detach(), tokens).sum() / max(totals.num_tokens, 1)


def _ratio_metrics(logp_T: Tensor, old_logp_T: Tensor, tokens: Tokens, totals: Totals) -> Metrics:
    """How far the policy is from the one that the step began with."""
    moved_T = log_ratio(logp_T.detach(), old_logp_T)
    error_T = masked((moved_T.exp() - 1).abs(), tokens)
    largest = error_T.max() if len(error_T) else error_T.new_zeros(())
    return Metrics(
        {"actor/ppo_kl": _token_mean(-moved_T, tokens, totals)}, {"actor/ratio_max_abs_err": largest}
    )
