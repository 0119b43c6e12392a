"""The objective of one minibatch: policy loss, KL to the reference and entropy bonus, as shares that add up.

The trainer sums the scalars over microbatches and ranks; every denominator counts the whole minibatch.
Shape letters: T packed tokens, of one microbatch in a call, of all trajectories held here in `prepare`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hybridrl.algorithms import mismatch
from hybridrl.algorithms.base import Known, Metrics, Prepared, Reduce, Tokens, Totals
from hybridrl.algorithms.columns import Column, argument
from hybridrl.algorithms.needs import objective_columns, objective_makes, replaces_old_logp
from hybridrl.algorithms.observations import Observed
from hybridrl.algorithms.plugins import build
from hybridrl.algorithms.ratios import log_ratio
from hybridrl.algorithms.rules import loss_errors
from hybridrl.algorithms.selection import largest_share
from hybridrl.algorithms.sequences import masked
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.section import PluginConfig
from hybridrl.errors import ConfigError


class Objective:
    """loss + kl.coefficient * KL - entropy_coefficient * entropy, each aggregated in the configured mode, and
    observations.coefficient times the loss on observed tokens.

    kl_coefficient and entropy_coefficient may be set between steps, to the same value on every rank
    (controllers.py).
    """

    def __init__(self, config: AlgorithmConfig, *, max_response_tokens: int | None = None) -> None:
        """
        Args:
            max_response_tokens: rollout.max_response_tokens; seq_mean_token_sum_norm divides by it.

        Raises:
            ConfigError: an unknown plug-in or option, or a loss that is not defined for the aggregation mode;
                `where` is the config key.
        """
        self.loss = build("policy_loss", config.loss.name, config.loss.options, where="algorithm.loss")
        for error in loss_errors(config, self.loss):
            raise error
        self.aggregate = _aggregate(config.aggregate, max_response_tokens)
        self.kl = build("kl", config.kl.estimator, {}, where="algorithm.kl.estimator")
        self.kl_coefficient = config.kl.coefficient if config.kl.place == "loss" else 0.0
        self.entropy_coefficient = config.entropy_coefficient
        self.entropy_top_share = config.entropy_top_share
        self.corrections = [_correction(entry) for entry in config.correction]
        self.has_kl = self.kl_coefficient > 0
        self.observations = config.observations

    @property
    def columns(self) -> frozenset[Column]:
        """Token columns that `prepare` and a call need."""
        kl = self.kl if self.has_kl else None
        return objective_columns(self.loss, kl, self.corrections, self.entropy_top_share)

    @property
    def prepares(self) -> bool:
        """Whether `prepare` must be called once per batch, before its first minibatch."""
        return bool(self._makes)

    @property
    def _loss_makes(self) -> frozenset[Column]:
        return getattr(self.loss, "makes", frozenset())

    @property
    def _makes(self) -> frozenset[Column]:
        return objective_makes(self.loss, self.corrections, self.entropy_top_share)

    @property
    def bypass(self) -> bool:
        """Whether the engine's log-probabilities replace old_logp, so that the first ratio is not exactly
        1."""
        return replaces_old_logp(self.corrections)

    def prepare(self, known: Known, reduce: Reduce) -> Prepared:
        """Columns that depend on the whole batch; every call needs them in addition to `columns`.
        *Collective*.

        Args:
            known: advantages and `columns` of all trajectories held here.
        """
        known = _masked_known(known, self._with_old_logp(known.columns))
        made, metrics = self.loss.prepare(known, reduce) if self._loss_makes else Prepared({}, {})
        if "weight" not in self._makes:
            return Prepared(made, metrics)
        weight_T = torch.ones_like(known.advantage_T)
        if self.corrections:
            weight_T, more = self._corrected(weight_T, known, reduce)
            metrics = metrics | more
        if self.entropy_top_share < 1:
            weight_T = weight_T * largest_share(
                known.columns["old_entropy"], self.entropy_top_share, known.tokens, reduce
            )
        return Prepared({**made, "weight": masked(weight_T, known.tokens)}, metrics)

    def _corrected(self, weight_T: Tensor, known: Known, reduce: Reduce) -> tuple[Tensor, dict[str, Tensor]]:
        moved_T = masked(log_ratio(known.columns["old_logp"], known.columns["rollout_logp"]), known.tokens)
        for correction in self.corrections:
            own = _pick(correction, known.columns) if hasattr(correction, "needs") else {}
            weight_T = correction(weight_T, moved_T, known.tokens, reduce, **own)
        metrics = mismatch.divergence_metrics(
            known.columns["old_logp"], known.columns["rollout_logp"], known.tokens, reduce
        )
        return weight_T, metrics | mismatch.weight_metrics(weight_T, moved_T, known.tokens, reduce)

    def __call__(
        self,
        logp_T: Tensor,
        entropy_T: Tensor | None,
        columns: Mapping[str, Tensor],
        advantage_T: Tensor,
        tokens: Tokens,
        totals: Totals,
        observed: Observed | None = None,
    ) -> tuple[Tensor, Metrics]:
        """This microbatch's share of the minibatch's objective, to minimise, and its share of the metrics.

        Args:
            logp_T: float [T], with a gradient; any value where the mask is False.
            entropy_T: float [T], with a gradient if the entropy coefficient is not 0; None: not reported.
            columns: name ("old_logp") to column, without gradients; at least `self.columns` and what
                `prepare` made.
            advantage_T: float [T], without a gradient.
            observed: tokens that an environment wrote, if observations.coefficient is above 0.

        Raises:
            ValueError: a column is missing.
        """
        missing = (self.columns | self._makes) - set(columns)
        if missing:
            raise ValueError(f"columns {sorted(missing)} are missing, got {sorted(columns)}")
        # Values outside the mask, inf included, must not reach a gradient as 0 * inf.
        logp_T, advantage_T = masked(logp_T, tokens), masked(advantage_T, tokens)
        columns = {n: masked(columns[n], tokens) for n in self.columns | self._makes}
        columns = self._with_old_logp(columns)
        total, metrics = self._policy_share(logp_T, columns, advantage_T, tokens, totals)
        if self.has_kl:
            kl_T = self.kl(logp_T=logp_T, ref_logp_T=columns["ref_logp"], **_pick(self.kl, columns))
            kl_loss = self.aggregate(kl_T, tokens, totals)
            metrics.sum["actor/kl_loss"] = kl_loss.detach()
            metrics.max["actor/kl_coef"] = torch.tensor(self.kl_coefficient, device=logp_T.device)
            total = total + self.kl_coefficient * kl_loss
        if entropy_T is not None:
            metrics.sum["actor/entropy"] = _token_mean(entropy_T, tokens, totals)
        if self.entropy_coefficient:
            metrics.max["actor/entropy_coef"] = torch.tensor(self.entropy_coefficient, device=logp_T.device)
            if entropy_T is None:
                raise ValueError(
                    f"entropy_coefficient = {self.entropy_coefficient} without an entropy column"
                )
            total = total - self.entropy_coefficient * self.aggregate(entropy_T, tokens, totals)
        if observed is not None:
            observation_loss = observed.loss()
            metrics.sum["actor/observation_loss"] = observation_loss.detach()
            total = total + self.observations.coefficient * observation_loss
        return total, metrics

    def _policy_share(
        self,
        logp_T: Tensor,
        columns: Mapping[str, Tensor],
        advantage_T: Tensor,
        tokens: Tokens,
        totals: Totals,
    ) -> tuple[Tensor, Metrics]:
        outcome = self.loss(
            logp_T=logp_T, advantage_T=advantage_T, tokens=tokens, **_pick(self.loss, columns)
        )
        loss_T = outcome.loss_T * columns["weight"] if "weight" in columns else outcome.loss_T
        policy_loss = self.aggregate(loss_T, tokens, totals)
        metrics = _ratio_metrics(logp_T, columns["old_logp"], tokens, totals)
        metrics.sum["actor/pg_loss"] = policy_loss.detach()
        for name, column_T in outcome.mean.items():
            metrics.sum[name] = _token_mean(column_T, tokens, totals)
        return policy_loss, metrics

    def _with_old_logp(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**columns, "old_logp": columns["rollout_logp"]} if self.bypass else dict(columns)


def _aggregate(name: str, max_response_tokens: int | None) -> Any:
    where = "algorithm.aggregate"
    if name == "seq_mean_token_sum_norm" and max_response_tokens is None:
        raise ConfigError(
            f"{name} divides by the longest response allowed, which was not given",
            where=where,
            fix="Objective(config, max_response_tokens=rollout.max_response_tokens)",
        )
    options = {"max_response_tokens": max_response_tokens} if name == "seq_mean_token_sum_norm" else {}
    return build("aggregate", name, options, where=where)


def _correction(entry: str | dict[str, Any]) -> Any:
    plugin = PluginConfig.model_validate(entry)
    return build("correction", plugin.name, plugin.options, where="algorithm.correction")


def _masked_known(known: Known, columns: Mapping[str, Tensor]) -> Known:
    columns = {n: masked(c, known.tokens) for n, c in columns.items()}
    advantage_T = masked(known.advantage_T, known.tokens)
    return Known(known.step, known.reward_N, known.group_N, advantage_T, known.tokens, columns)


def _pick(plugin: Any, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {argument(c): columns[c] for c in plugin.needs}


def _token_mean(value_T: Tensor, tokens: Tokens, totals: Totals) -> Tensor:
    count = totals.num_tokens if totals.measured_tokens is None else totals.measured_tokens
    return masked(value_T.detach(), tokens).sum() / max(count, 1)


def _ratio_metrics(logp_T: Tensor, old_logp_T: Tensor, tokens: Tokens, totals: Totals) -> Metrics:
    """Metrics of how far the policy is from the one at the start of the step."""
    moved_T = log_ratio(logp_T.detach(), old_logp_T)
    error_T = masked((moved_T.exp() - 1).abs(), tokens)
    largest = error_T.max() if len(error_T) else error_T.new_zeros(())
    return Metrics(
        {"actor/ppo_kl": _token_mean(-moved_T, tokens, totals)}, {"actor/ratio_max_abs_err": largest}
    )
