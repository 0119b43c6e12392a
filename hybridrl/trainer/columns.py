"""Fills the columns of a loaded batch that its algorithm needs.

There are two parts: `measure` runs the policy itself. `complete` runs the other models of these ranks, and
then computes advantages and whatever else the objective needs. Columns from other groups of ranks may arrive
between the two. Both are *collective*.
Shape letters: U trained tokens of the whole batch, H trained tokens of the trajectories on this rank.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hybridrl.algorithms.base import Advantage, Known, Metrics
from hybridrl.algorithms.columns import PROMPT_COLUMNS, argument
from hybridrl.algorithms.guards import stop
from hybridrl.algorithms.needs import Needs
from hybridrl.algorithms.objective import Objective
from hybridrl.batch import Minibatch
from hybridrl.trainer import guards
from hybridrl.trainer.base import Model
from hybridrl.trainer.coefficients import Coefficients
from hybridrl.trainer.guards import agreement
from hybridrl.trainer.loaded import LoadedBatch
from hybridrl.trainer.mesh import Mesh
from hybridrl.trainer.roles.critic import Critic, value_metrics
from hybridrl.trainer.roles.frozen import FrozenPolicies
from hybridrl.trainer.roles.process_model import ProcessModel
from hybridrl.trainer.score import Scorer


class Columns:
    def __init__(
        self,
        objective: Objective,
        coefficients: Coefficients,
        needs: Needs,
        model: Model,
        mesh: Mesh,
        *,
        temperature: float,
        frozen: FrozenPolicies,
        process: ProcessModel | None,
        critic: Critic | None,
        guards_divergence: bool,
        replays_experts: bool,
    ) -> None:
        """
        Args:
            model: the policy.
            frozen, process, critic: models that these ranks hold besides; None if they do not.
            guards_divergence: stop the run if the columns of the KL term contradict each other.
            replays_experts: optimizer steps use the experts that were chosen when old_logp was computed.
        """
        self._objective, self._coefficients, self._needs, self._mesh = objective, coefficients, needs, mesh
        self._scorer, self._half_scorer = Scorer(model, temperature), Scorer(model, temperature / 2)
        self._frozen, self._process, self._critic = frozen, process, critic
        self._guards_divergence, self._replays_experts = guards_divergence, replays_experts
        self.divergence: float | None = None
        """KL of policy and reference on the last batch, in nats per trained token; None if not measured."""

    def measure(self, loaded: LoadedBatch) -> dict[str, float]:
        """Compute the columns of the policy, over exactly the microbatches of the following optimizer steps.

        If nothing needs old_logp before the first optimizer step, the forward pass of that step fills it at
        the step's tokens.
        """
        # rollout_logp is always unpacked: engine and trainer are compared by it.
        head = {"engine_head"} if self._needs.head_tokens else set[str]()
        loaded.unpack(self._needs.columns | head | {"rollout_logp"})
        scores = self._needs.scores_first(len(loaded.minibatches), replays_experts=self._replays_experts)
        metrics = self._add_policy_columns(loaded) if scores else {}
        if "old_collision" in self._needs.columns:
            self._add_collision(loaded)
        return metrics

    def complete(
        self,
        loaded: LoadedBatch,
        arrived: Mapping[str, np.ndarray],
        hinted: LoadedBatch | None = None,
    ) -> dict[str, float]:
        """Compute all other columns.

        Args:
            arrived: columns that other groups of ranks computed, float32 [U], the same on every rank.
            hinted: the batch as the teacher of these ranks reads it; None: as the policy reads it.

        Raises:
            ValueError: a column does not have U elements.
        """
        metrics: dict[str, float] = {}
        for name, column_U in arrived.items():
            loaded.take(name, column_U)
        self._frozen.add(loaded, hinted)
        if "ref_logp" in loaded.columns:
            metrics |= self._measure_divergence(loaded)
        if (process := self._process) is not None:
            metrics |= process.train(loaded)
            loaded.add("process_logp", process.logp(loaded))
        if (critic := self._critic) is not None:
            loaded.add("value", critic.values(loaded))
        if loaded.batch.advantage_N is None:
            metrics |= self._add_advantage(loaded)
        if self._objective.prepares:
            metrics |= self._add_prepared_columns(loaded)
        if self._mesh.is_last_stage:
            loaded.share(self._mesh)
        return metrics

    def agreement(self, loaded: LoadedBatch, minibatch: Minibatch | None = None) -> dict[str, float]:
        """Metrics: how far trainer and engine agree about the tokens of a batch that has column old_logp.

        Args:
            minibatch: the one whose tokens have it; None: all tokens do.
        """
        at_H = loaded.held_H if minibatch is None else loaded.held_of(minibatch)
        rollout_logp_H, old_logp_H = (loaded.columns[name][at_H] for name in ("rollout_logp", "old_logp"))
        return self._mesh.from_last_stage(agreement(rollout_logp_H, old_logp_H, self._mesh))

    def _add_policy_columns(self, loaded: LoadedBatch) -> dict[str, float]:
        """Fill old_logp and old_entropy; returns metrics about them."""
        microbatches = loaded.microbatches(loaded.first_epoch)
        logp_U, entropy_U = self._scorer.columns(loaded.packed, microbatches)
        loaded.add("old_logp", logp_U)
        loaded.add("old_entropy", entropy_U)
        # In float64, so that the sum does not depend on which answers came back together
        entropy = Metrics({"actor/entropy": entropy_U.double().sum() / _num_tokens(loaded)})
        return self.agreement(loaded) | self._mesh.combine([entropy])

    def _add_collision(self, loaded: LoadedBatch) -> None:
        """Fill old_collision, the sum of p^2 over the vocabulary.

        It equals exp(2 logp - logp'), with logp' at half the temperature, for any token of the vocabulary.
        """
        microbatches = loaded.microbatches(loaded.first_epoch)
        logp_U, _ = self._half_scorer.columns(loaded.packed, microbatches)
        loaded.add_held("old_collision", (2 * loaded.columns["old_logp"] - logp_U)[loaded.held_H].exp())

    def _measure_divergence(self, loaded: LoadedBatch) -> dict[str, float]:
        """Measure the KL between policy and reference, if old_logp is known by now; returns metrics."""
        if self._guards_divergence and self._mesh.is_last_stage:
            stop(guards.divergence(loaded, self._mesh), step=loaded.step)
        if "old_logp" not in loaded.columns:
            return {}
        gap_H = loaded.held("old_logp") - loaded.held("ref_logp")
        self.divergence = self._mesh.combine([Metrics({"kl": gap_H.sum() / _num_tokens(loaded)})])["kl"]
        weight = getattr(self._coefficients.estimator, "kl_coefficient", 0.0)
        if not weight:
            return {}
        return {"actor/reward_kl_penalty": self.divergence, "actor/reward_kl_penalty_coeff": weight}

    def _add_advantage(self, loaded: LoadedBatch) -> dict[str, float]:
        """Run an estimator that needs token columns; fills advantage, and return if there is a critic."""
        if not self._mesh.is_last_stage:
            return self._mesh.from_last_stage({})
        estimator = self._coefficients.estimator
        columns: dict[str, Any] = {
            argument(c): loaded.held(c) for c in estimator.needs & loaded.columns.keys()
        }
        columns |= {argument(c): column_N for c, column_N in loaded.scalars.items()}
        columns |= {argument(c): loaded.of_prompts(c) for c in estimator.needs & PROMPT_COLUMNS}
        advantage = estimator(
            reward_N=loaded.reward_N,
            group_N=loaded.group_N,
            tokens=loaded.tokens_H,
            reduce=self._mesh,
            **columns,
        )
        assert isinstance(advantage, Advantage), "an estimator that needs token columns returns token columns"
        loaded.add_held("advantage", advantage.advantage_T)
        if advantage.return_T is None:
            return self._mesh.from_last_stage({})
        loaded.add_held("return", advantage.return_T)
        return self._mesh.from_last_stage(value_metrics(loaded, self._mesh))

    def _add_prepared_columns(self, loaded: LoadedBatch) -> dict[str, float]:
        """Fill the columns that the objective computes from the whole batch; returns its metrics."""
        if not self._mesh.is_last_stage:
            return self._mesh.from_last_stage({})
        columns = {name: loaded.held(name) for name in loaded.columns}
        advantage_H = columns.pop("advantage")
        known = Known(loaded.step, loaded.reward_N, loaded.group_N, advantage_H, loaded.tokens_H, columns)
        prepared = self._objective.prepare(known, self._mesh)
        for name, value_H in prepared.columns.items():
            loaded.add_held(name, value_H)
        return self._mesh.from_last_stage({name: float(value) for name, value in prepared.metrics.items()})


def _num_tokens(loaded: LoadedBatch) -> int:
    """Trained tokens of the batch that are computed, over all ranks."""
    counts = (m.num_tokens if m.computed_tokens is None else m.computed_tokens for m in loaded.first_epoch)
    return max(1, sum(counts))
