"""The actor on one rank: columns of a batch, optimizer steps, checkpoints.

Every method of Policy except `tensors` is *collective*: all ranks call it, in the same order.
Log-probabilities exist on the last pipeline stage only; results are broadcast from there.
Shape letters: U trained tokens of the whole batch, R trained tokens of one microbatch, T tokens of a block.
"""

import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import Metrics, Tokens, Totals
from hybridrl.algorithms.guards import stop
from hybridrl.algorithms.needs import Needs
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.observations import Observed, observation_weights
from hybridrl.batch import RankBatch, TokenBlock
from hybridrl.errors import NonFiniteError
from hybridrl.hosts import cuda
from hybridrl.reshard.checksum import checksum
from hybridrl.trainer import base, guards, recorded
from hybridrl.trainer.coefficients import Coefficients
from hybridrl.trainer.columns import Columns
from hybridrl.trainer.fixed import fixed
from hybridrl.trainer.hints import with_hints
from hybridrl.trainer.inspected import inspect
from hybridrl.trainer.offload import Offload
from hybridrl.trainer.places import Microbatch
from hybridrl.trainer.roles.base import Role, offload
from hybridrl.trainer.roles.critic import Critic
from hybridrl.trainer.roles.frozen import FrozenPolicies, frozen_folder
from hybridrl.trainer.roles.process_model import ProcessModel
from hybridrl.trainer.score import Scorer, block_logp
from hybridrl.trainer.setup import PolicySetup
from hybridrl.types import InspectedTrajectory, StepReport


class Policy(Role):
    def __init__(self, setup: PolicySetup) -> None:
        """Join the other ranks and build the model with the weights of the model folder.

        Raises:
            ResourceError: the device is not usable, see base.open.
            LayoutError, ModelError: the model cannot be sharded as asked, or a part of it is not supported.
            ConfigError: an algorithm plug-in does not exist.
        """
        self._setup = setup
        self._objective = Objective(setup.algorithm, max_response_tokens=setup.max_response_tokens)
        self._coefficients = Coefficients(setup.algorithm, self._objective, load_estimator(setup.algorithm))
        self._needs = Needs.of(setup.algorithm)
        self._guards = setup.algorithm.guards == "stop"
        self._skipped = 0
        """Optimizer steps that were skipped in a row."""

        super().__init__(base.open(setup), async_save=setup.async_save, goes_on_unsaved=setup.goes_on_unsaved)
        self.layout, self.device = self.backend.layout, self.backend.device
        with self.backend.scope():
            self._model = self.backend.build(lora=setup.actor.lora)
            self._model.load(setup.model_folder)
            self.fixed = fixed(self._model)
            """Canonical parameters that no step changes, the same on every rank."""
            self._optimizer = self._model.optimizer(setup.actor.optimizer, setup.num_optimizer_steps)
            self._scorer = Scorer(self._model, setup.temperature)
            self._routing = self._model.routing(setup.actor.moe)
            needs = self._needs.columns - setup.remote_columns
            self._critic = self._build_critic() if "value" in needs else None
            self._process = self._build_process_model() if "process_logp" in needs else None
            self._frozen = self._frozen_policies(needs)
            parts = {"policy": (self._model, self._optimizer)}
            parts |= {"process_model": self._process.part} if self._process else {}
            self._trained = parts | ({"critic": self._critic.part} if self._critic else {})
            self._columns = self._make_columns()
            self._offload = self._make_offload()
            self._offload.leave()

    def tensors(self) -> Mapping[str, Tensor]:
        """The live parameters of this rank, by their name in `layout`.

        A parameter with an adapter is not live: it is computed, with the adapter merged in, on access.
        """
        return self._model.weights()

    def load(self, batch: RankBatch) -> dict[str, float]:
        """Take a batch and compute the columns that the algorithm needs: `measure`, then `complete`."""
        return self.measure(batch) | self.complete({})

    def measure(self, batch: RankBatch) -> dict[str, float]:
        """Take a batch and compute the columns of the policy itself.

        They are computed over exactly the microbatches of the following optimizer steps.

        Returns:
            Metrics: how far trainer and engine agree about the trained tokens, and the entropy; equal on all
            ranks.
        """
        self._saver.raise_failure()
        found = stop(guards.masks(batch), step=batch.step) if self._guards else []
        self._warnings = tuple((finding.guard, finding.text) for finding in found)
        if (failure := self._saver.failure) is not None:
            self._warnings += ((f"unsaved {failure}", f"the last checkpoint was not written: {failure}"),)
        self._loaded = self.backend.load(batch, observed=self._needs.observed)
        with self.backend.scope():
            self._offload.begin_return()
            rows_move = len(batch.minibatches) > len(self._loaded.first_epoch)
            with self._routing.keeping(batch.blocks, share=rows_move):
                return self._columns.measure(self._loaded) | self._routing.agreement()

    def complete(self, arrived: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Compute all other columns of the batch that `measure` took.

        Args:
            arrived: the columns of setup.remote_columns, float32 [U], in the order of the blocks.

        Returns:
            Metrics of estimator and objective over the whole batch; the same on every rank.
        """
        hints = self._setup.algorithm.hint is not None and "teacher_logp" not in self._setup.remote_columns
        hinted = self.backend.load(with_hints(self._loaded.batch)) if hints else None
        with self.backend.scope():
            self._offload.finish_return()
            return self._columns.complete(self._loaded, arrived, hinted)

    def inspect(self, rows: Sequence[int], *, num_suspicious: int) -> list[InspectedTrajectory] | None:
        """Some trajectories of the loaded batch with their tokens, see trainer/inspected.py; None on all but
        the last pipeline stage."""
        with self.backend.scope():
            if not self._mesh.is_last_stage:
                return None
            return inspect(self._loaded, self._mesh, rows, num_suspicious=num_suspicious)

    def step(self, index: int) -> StepReport:
        """Take one optimizer step on minibatch `index` of the loaded batch.

        Returns:
            The same report on every rank.

        Raises:
            NonFiniteError: loss or gradient norm is inf or NaN, and such a step is not skipped, or too many
                were; parameters and optimizer are unchanged.
            GuardError: a check of the first step failed; parameters and optimizer are unchanged.
        """
        loaded, minibatch = self._loaded, self._loaded.minibatches[index]
        fills_old_logp = "old_logp" not in loaded.columns
        with self.backend.scope():
            self._return()
            objective, grad_norm, metrics = self._accumulate(index)
            skips = self._skips(objective, grad_norm, where=f"step {loaded.step}, minibatch {index}")
            if skips:
                metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
            elif self._guards and index == 0 and not self._objective.bypass:
                stop(guards.ratio(metrics), step=loaded.step)
            only_critic = "value" in self._needs.columns and loaded.step <= self._setup.critic.pretrain_steps
            lr = 0.0 if only_critic or skips else self._optimizer.step(grad_norm)
            metrics["actor/skipped"] = float(skips)
            metrics |= self._optimizer.scaling()
            if self._critic is not None:
                metrics |= self._critic.step(loaded, minibatch)
            if fills_old_logp:
                metrics |= self._columns.agreement(loaded, minibatch)
            if minibatch is loaded.minibatches[-1]:
                entropy = metrics.get("actor/entropy", 0.0)  # missing if no rank has a trained token
                if not skips:
                    self._coefficients.after_batch(self._columns.divergence, entropy, len(loaded.reward_N))
                self._offload.leave()
        return StepReport(loaded.step, objective, grad_norm, lr, metrics, self._warnings)

    def _skips(self, objective: float, grad_norm: float, *, where: str) -> bool:
        """Whether an optimizer step is skipped because its loss or gradient is not finite.

        Raises:
            NonFiniteError: it is not finite and may not be skipped.
        """
        if math.isfinite(objective) and math.isfinite(grad_norm):
            self._skipped = 0
            return False
        self._skipped += 1
        what = f"loss {objective}, gradient norm {grad_norm}"
        if self._setup.actor.non_finite == "halt":
            raise NonFiniteError(what, where=where, fix="actor.non_finite=skip leaves out such a step")
        if self._skipped > _MOST_SKIPPED:
            raise NonFiniteError(f"{what}, as in the {_MOST_SKIPPED} optimizer steps before", where=where)
        self._warnings += ((f"non-finite {where}", f"{where} is skipped: {what}"),)
        return True

    def gradients(self, index: int) -> tuple[float, float, dict[str, Tensor]]:
        """Compute the gradients of `step` at the present weights, without updating anything.

        Returns:
            Loss and gradient norm, the same on every rank, and the gradients of this rank's parameters by
            their name in `layout`: views that the next call overwrites.
        """
        with self.backend.scope():
            self._return()
            loss, grad_norm, _ = self._accumulate(index)
            return loss, grad_norm, self._model.whole_gradients()

    def logp(self, block: TokenBlock) -> np.ndarray:
        """Log-probability of the trained tokens of a block, 0 elsewhere; float32 [T].

        Every data-parallel rank computes all of it: for checks, not for training.
        """
        with self.backend.scope():
            return block_logp(self.backend, self._scorer, block)

    def recorded(self) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """What a step bundle keeps of this rank.

        Returns:
            The token columns of the loaded batch at the trained tokens of all trajectories in order, none on
            all but the last pipeline stage; and checksums of this rank's parameters.
        """
        with self.backend.scope():
            columns = recorded.columns(self._loaded, self._mesh) if self._mesh.is_last_stage else {}
            return columns, {name: checksum(tensor) for name, tensor in self.tensors().items()}

    def give(self, columns: Mapping[str, np.ndarray]) -> None:
        """Take token columns as `recorded` gave them, in place of those that were computed."""
        with self.backend.scope():
            if self._mesh.is_last_stage:
                recorded.give(self._loaded, columns)

    def at_tokens(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Columns as `complete` takes them, from columns as `recorded` gives them."""
        return recorded.at_tokens(self._loaded, columns)

    def _facts(self) -> dict[str, Any]:
        return {"coefficients": self._coefficients.state_dict()}

    def _resume(self, facts: Mapping[str, Any]) -> None:
        self._coefficients.load_state_dict(facts["coefficients"])

    def export(self, folder: Path) -> None:
        """Write the present weights in Hugging Face format."""
        self.backend.export(folder, self.tensors())
        cuda.release_cached_memory()

    def _return(self) -> None:
        """Bring offloaded tensors back; needed if the steps of the loaded batch are taken a second time."""
        self._offload.begin_return()
        self._offload.finish_return()

    def _accumulate(self, index: int) -> tuple[float, float, dict[str, float]]:
        """Accumulate the gradients of a minibatch; returns loss, gradient norm and metrics.

        This fills old_logp at the minibatch's tokens if the batch does not have it yet.
        """
        loaded, minibatch = self._loaded, self._loaded.minibatches[index]
        totals = Totals(minibatch.num_tokens, minibatch.num_sequences, minibatch.computed_tokens)
        fills_old_logp = "old_logp" not in loaded.columns
        if fills_old_logp:
            loaded.add("old_logp", loaded.packed.zeros_U())

        num_observed = loaded.num_observed(minibatch) if self._needs.observed else 0

        def loss(microbatch: Microbatch, hidden_O1: Tensor) -> tuple[Tensor, Metrics]:
            logp_P, entropy_P = self._scorer.score_predicted(microbatch, hidden_O1)
            logp_R, entropy_R = microbatch.trained(logp_P), microbatch.trained(entropy_P)
            if fills_old_logp:
                loaded.columns["old_logp"][microbatch.trained_R] = logp_R.detach()
            observed = self._observed(microbatch, logp_P, totals, num_observed)
            heads = self._heads(microbatch, hidden_O1, logp_P)
            return self._share(microbatch, logp_R, entropy_R, heads, totals, observed)

        self._optimizer.zero_gradients()
        with self._routing.training(minibatch.num_sequences):
            shares = self._model.accumulate_gradients(loaded.microbatches([minibatch]), loss)
        metrics = self._mesh.combine(shares) | self._routing.metrics()
        return metrics.pop(_OBJECTIVE, 0.0), self._optimizer.gradient_norm(), metrics

    def _heads(self, microbatch: Microbatch, hidden_O1: Tensor, logp_P: Tensor) -> dict[str, Tensor]:
        """The columns of this pass besides logp and entropy: head_logp, if the loss needs it."""
        name = "teacher_head" if self._needs.teacher_head_tokens else "engine_head"
        if not self._needs.teacher_head_tokens and not self._needs.head_tokens:
            return {}
        head_RK = self._loaded.columns[name][microbatch.trained_R]
        return {"head_logp": self._scorer.head(microbatch, hidden_O1, logp_P, head_RK)}

    def _observed(
        self, microbatch: Microbatch, logp_P: Tensor, totals: Totals, num_observed: int
    ) -> Observed | None:
        if not self._needs.observed:
            return None
        weight_E = observation_weights(
            self._objective.observations,
            microbatch.seq_E,
            num_seqs=microbatch.num_seqs,
            num_sequences=totals.num_sequences,
            num_observed=num_observed,
        )
        return Observed(logp_E=microbatch.observed(logp_P), weight_E=weight_E)

    def _share(
        self,
        microbatch: Microbatch,
        logp_R: Tensor,
        entropy_R: Tensor,
        heads: Mapping[str, Tensor],
        totals: Totals,
        observed: Observed | None,
    ) -> tuple[Tensor, Metrics]:
        """This microbatch's share of the objective, and of the metrics."""
        tokens = Tokens(
            microbatch.seq_R, torch.ones_like(microbatch.seq_R, dtype=torch.bool), microbatch.num_seqs
        )
        columns = {name: column_U[microbatch.trained_R] for name, column_U in self._loaded.columns.items()}
        columns |= heads
        advantage_R = columns["advantage"]
        scalar, metrics = self._objective(logp_R, entropy_R, columns, advantage_R, tokens, totals, observed)
        metrics.sum[_OBJECTIVE] = scalar.detach().clone()  # the schedule may scale the loss in place
        return scalar, metrics

    def _build_process_model(self) -> ProcessModel:
        setup, estimator = self._setup, self._coefficients.estimator
        model = self.backend.build()
        model.copy(self.tensors())
        beta = cast(Any, getattr(estimator, "inner", estimator)).beta
        config, temperature = setup.algorithm.process_model, setup.temperature
        return ProcessModel(config, model, self._mesh, beta=beta, temperature=temperature)

    def _build_critic(self) -> Critic:
        setup, model = self._setup, self.backend.build(value_head=True)
        model.copy(self.tensors())
        return Critic(setup.critic, model, self._mesh, num_steps=setup.num_optimizer_steps)

    def _frozen_policies(self, needs: Set[str]) -> FrozenPolicies:
        weights: dict[str, dict[str, Tensor] | None] = {}
        if "ref_logp" in needs:
            whole = self._setup.actor.lora is None  # with LoRA, the base model is the reference
            own = self._model.tensors() if whole else {}
            weights["ref_logp"] = {name: tensor.clone() for name, tensor in own.items()}
        if "teacher_logp" in needs and self._needs.teaches_itself:
            weights["teacher_logp"] = None
        elif "teacher_logp" in needs:
            held = {n: torch.empty_like(t) for n, t in self._model.tensors().items()}
            self._model.load(frozen_folder(self._setup, "teacher_logp"), into=held)
            weights["teacher_logp"] = held
        heads = min(self._needs.teacher_head_tokens, self._setup.model.vocab_size)
        return FrozenPolicies(self._model, self._scorer, weights, teacher_head_tokens=heads)

    def _make_columns(self) -> Columns:
        return Columns(
            self._objective,
            self._coefficients,
            self._needs,
            self._model,
            self._mesh,
            temperature=self._setup.temperature,
            frozen=self._frozen,
            process=self._process,
            critic=self._critic,
            guards_divergence=self._guards and guards.trains_on_all_samples(self._setup.algorithm),
            replays_experts=self._setup.actor.moe.router_replay == "old_logp",
        )

    def _make_offload(self) -> Offload:
        """Offload of the tensors that the weight swap does not read, as actor.offload says."""
        trained = self._trained
        other_models = [
            w for part, (model, _) in trained.items() if part != "policy" for w in model.tensors().values()
        ]
        weights = [*self._frozen.tensors(), *other_models]
        return offload(self._setup.actor.offload, trained.values(), weights)


_MOST_SKIPPED = 5
"""Optimizer steps in a row that may be skipped because they are not finite."""

_OBJECTIVE = "objective"
