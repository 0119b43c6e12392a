"""The actor on one Megatron rank: columns of a batch, optimizer steps, checkpoints.

Every method of MegatronPolicy except `tensors` is *collective*: all ranks call it, in the same order.
Log-probabilities exist on the last pipeline stage only; what is returned is broadcast from there.
Shape letters: U trained tokens of the whole batch, R those of one microbatch, T tokens of a block.
"""

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import Metrics, Tokens, Totals
from hybridrl.algorithms.guards import stop
from hybridrl.algorithms.needs import Needs
from hybridrl.algorithms.objective import Objective
from hybridrl.batch import RankBatch, TokenBlock
from hybridrl.errors import NonFiniteError
from hybridrl.hosts import cpu, cuda
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.reshard.checkpoint import export_hf, load_hf
from hybridrl.trainer.export import export as export_checkpoint
from hybridrl.trainer.megatron import checkpoint, lora, watch
from hybridrl.trainer.megatron.architecture import transformer_config
from hybridrl.trainer.megatron.coefficients import Coefficients
from hybridrl.trainer.megatron.collectives import combine, from_last_stage
from hybridrl.trainer.megatron.columns import Askable, Columns
from hybridrl.trainer.megatron.critic import Critic
from hybridrl.trainer.megatron.frozen import FrozenPolicies, reference_weights, teacher_weights
from hybridrl.trainer.megatron.gradients import whole_gradients
from hybridrl.trainer.megatron.loaded import LoadedBatch
from hybridrl.trainer.megatron.model import Stage, build, named_parameters
from hybridrl.trainer.megatron.offload import Offload, gradient_buffers
from hybridrl.trainer.megatron.optimizer import Optimizer
from hybridrl.trainer.megatron.packing import Deal, Microbatch, PackedBatch
from hybridrl.trainer.megatron.process_model import ProcessModel
from hybridrl.trainer.megatron.routing import Routing
from hybridrl.trainer.megatron.schedule import accumulate_gradients
from hybridrl.trainer.megatron.score import Scorer
from hybridrl.trainer.megatron.setup import leave, make_layout, start
from hybridrl.trainer.setup import TrainerSetup
from hybridrl.types import StepReport


class MegatronPolicy:
    def __init__(self, setup: TrainerSetup) -> None:
        """Join the other ranks and build the model with the weights of the model folder.

        Raises:
            ResourceError: torch would use a GPU.
            LayoutError, ModelError: the model cannot be split as asked, or has a part that is not supported.
            ConfigError: an algorithm plug-in that does not exist.
        """
        self._setup = setup
        self._objective = Objective(setup.algorithm, max_response_tokens=setup.max_response_tokens)
        self._coefficients = Coefficients(setup.algorithm, self._objective, load_estimator(setup.algorithm))
        self._needs = Needs.of(setup.algorithm)
        self._guards = setup.algorithm.guards == "stop"
        with cpu.scope():
            self.device = start(setup)
            self.layout = make_layout(setup)
            config = transformer_config(setup, self.device)
            self._deal = Deal.here(config)
            self._model = self._build(config, adapters=self._adapter_layout())
            load_hf(setup.model_folder, self.layout, setup.rank, self._base())
            lora.start(self._model, setup.seed)
            self._optimizer = Optimizer(setup.actor.optimizer, self._model, setup.num_optimizer_steps)
            self._scorer = Scorer(self._model, setup.temperature)
            self._routing = Routing(setup.actor.moe, self._model)
            needs = self._needs.columns - setup.elsewhere
            self._critic = self._build_critic(config) if "value" in needs else None
            self._process = self._build_process_model(config) if "process_logp" in needs else None
            self._frozen = self._frozen_policies(needs)
            self._columns = self._make_columns()
            self._offload = self._make_offload()
            self._offload.leave()
        self._saver = checkpoint.Saver(self.layout, timeout_s=setup.timeout_s, background=setup.async_save)

    def tensors(self) -> Mapping[str, Tensor]:
        """The parameters of this rank, by their name in `layout`. Live, but for those that have an adapter:
        each is computed, with its adapter in it, when it is asked for.
        """
        return self._base() if self._setup.actor.lora is None else lora.Merged(self._base(), self._model)

    def load(self, batch: RankBatch) -> dict[str, float]:
        """Take a batch and compute the columns that the algorithm needs: `measure`, then `complete`."""
        return self.measure(batch) | self.complete({})

    def measure(self, batch: RankBatch) -> dict[str, float]:
        """Take a batch and compute the columns of the policy itself, over the very microbatches of the steps
        to come.

        Returns:
            How far trainer and engine agree about the trained tokens, and the entropy; equal on all ranks.
        """
        self._saver.raise_failure()
        if self._guards:
            stop(watch.masks(batch), step=batch.step)
        dp_rank = parallel_state.get_data_parallel_rank()
        self._loaded = LoadedBatch(batch, dp_rank, self.device, self._deal)
        with cpu.scope():
            self._offload.begin_return()
            rows_move = len(batch.minibatches) > len(self._loaded.first_epoch)
            with self._routing.keeping(batch.blocks, share=rows_move):
                return self._columns.measure(self._loaded) | self._routing.agreement()

    def complete(self, arrived: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Compute all other columns of the batch that `measure` took.

        Args:
            arrived: those that setup.elsewhere names, float32 [trained tokens of the blocks, in their order].

        Returns:
            What estimator and objective report on the whole batch; the same on every rank.
        """
        with cpu.scope():
            self._offload.finish_return()
            return self._columns.complete(self._loaded, arrived)

    def column(self, name: str) -> np.ndarray | None:
        """A column of the loaded batch as `complete` takes it; None except on the last pipeline stage."""
        with cpu.scope():
            return self._columns.whole(self._loaded, name)

    def step(self, index: int) -> StepReport:
        """One optimizer step on minibatch `index` of the loaded batch.

        Returns:
            The same report on every rank.

        Raises:
            NonFiniteError: loss or gradient norm is inf or NaN; parameters and optimizer are as they were.
            GuardError: a check of the first step failed; parameters and optimizer are as they were.
        """
        loaded, minibatch = self._loaded, self._loaded.minibatches[index]
        fills_old_logp = "old_logp" not in loaded.columns
        with cpu.scope():
            self._return()
            objective, grad_norm, metrics = self._accumulate(index)
            if not (math.isfinite(objective) and math.isfinite(grad_norm)):
                where = f"step {loaded.step}, minibatch {index}"
                raise NonFiniteError(f"loss {objective}, gradient norm {grad_norm}", where=where)
            if self._guards and index == 0 and not self._objective.bypass:
                stop(watch.ratio(metrics), step=loaded.step)
            only_critic = "value" in self._needs.columns and loaded.step <= self._setup.critic.pretrain_steps
            lr = 0.0 if only_critic else self._optimizer.step(grad_norm)
            metrics |= self._optimizer.scaling()
            if self._critic is not None:
                metrics |= self._critic.step(loaded, minibatch)
            if fills_old_logp:
                metrics |= self._columns.agreement(loaded)
            if minibatch is loaded.minibatches[-1]:
                entropy = metrics.get("actor/entropy", 0.0)  # none where no rank has a trained token
                self._coefficients.after_batch(self._columns.divergence, entropy, len(loaded.reward_N))
                self._offload.leave()
        return StepReport(loaded.step, objective, grad_norm, lr, metrics)

    def gradients(self, index: int) -> tuple[float, float, dict[str, Tensor]]:
        """What `step` would begin with, at the present weights; updates nothing.

        Returns:
            Loss and gradient norm, the same on every rank, and the gradients of this rank's parameters by
            their name in `layout`: views that the next call overwrites.
        """
        with cpu.scope():
            self._return()
            loss, grad_norm, _ = self._accumulate(index)
            return loss, grad_norm, whole_gradients(self._model)

    def logp(self, block: TokenBlock) -> np.ndarray:
        """Log-probability of the trained tokens of a block, 0 elsewhere; float32 [T].

        Every data-parallel rank computes all of it: for checks, not for training.
        """
        zero_N, row_N = np.zeros(len(block), np.int64), np.arange(len(block))
        batch = RankBatch(0, (block,), zero_N, row_N, zero_N, zero_N.astype(np.float32), None)
        packed, lengths = PackedBatch(batch, self.device, self._deal), np.diff(block.start_N).tolist()
        rows_of = _by_tokens(lengths, self._setup.actor.microbatch_tokens)
        microbatches = [packed.microbatch(rows) for rows in rows_of]
        with cpu.scope():
            logp_U, _ = self._scorer.columns(packed, [m for m in microbatches if m is not None])
            logp_T = np.zeros(len(block.token_T), np.float32)
            logp_T[block.loss_mask_T] = logp_U.cpu().numpy()
            return from_last_stage(logp_T)

    def save(self, folder: Path, facts: Mapping[str, Any] | None = None, export: Path | None = None) -> None:
        """Write model, optimizer, schedule and random state into a new folder.

        With setup.async_save it is not there before `finish_saving`, and the training may go on.

        Args:
            facts: what the commit record is to hold besides; JSON.
            export: where the policy goes in Hugging Face format after that.

        Raises:
            CheckpointError: the folder exists.
            CheckpointError, ResourceError, DeadlineError: it, or the one before, could not be written.
        """
        source = self._setup.model_folder
        then = partial(export_checkpoint, folder, export, source, verified=True) if export else None
        with cpu.scope(), self._offload.at_home():
            facts = {**(facts or {}), "coefficients": self._coefficients.state_dict()}
            self._saver.save(folder, self._trained, facts, then)

    def finish_saving(self) -> None:
        """Returns when the last checkpoint is there.

        Raises:
            CheckpointError, ResourceError, DeadlineError: it could not be written.
        """
        self._saver.finish()

    def restore(self, folder: Path) -> list[str]:
        """Continue from a checkpoint as if there had been no interruption. The reference policy stays that of
        the model folder.

        Returns:
            What a person is to be told, where the checkpoint was made by ranks that were cut in another way.

        Raises:
            CheckpointError: it is not whole, damaged, or of another model, or something else was trained.
        """
        with cpu.scope(), self._offload.at_home():
            facts, notes = checkpoint.restore(folder, self.layout, self._trained, self._setup.seed)
        self._coefficients.load_state_dict(facts["coefficients"])
        return notes

    def export(self, folder: Path) -> None:
        """Write the present weights in Hugging Face format."""
        export_hf(
            folder,
            self.layout,
            self._setup.rank,
            self.tensors(),
            source_folder=self._setup.model_folder,
            barrier=dist.barrier,
        )
        cuda.release_cached_memory()

    def close(self) -> None:
        """Leave the other ranks; the policy is of no use afterwards."""
        leave()

    def _return(self) -> None:
        """For a step on a batch that was stepped through before."""
        self._offload.begin_return()
        self._offload.finish_return()

    def _accumulate(self, index: int) -> tuple[float, float, dict[str, float]]:
        """Gradients of a minibatch; returns loss, norm and metrics. Fills old_logp if nothing has."""
        loaded, minibatch = self._loaded, self._loaded.minibatches[index]
        totals = Totals(minibatch.num_tokens, minibatch.num_sequences)
        fills_old_logp = "old_logp" not in loaded.columns
        if fills_old_logp:
            loaded.add("old_logp", loaded.packed.zeros_U())

        def loss(microbatch: Microbatch, hidden_O1: Tensor) -> tuple[Tensor, Metrics]:
            logp_R, entropy_R = self._scorer.score(microbatch, hidden_O1)
            if fills_old_logp:
                loaded.columns["old_logp"][microbatch.trained_R] = logp_R.detach()
            return self._share(microbatch, logp_R, entropy_R, totals)

        self._optimizer.zero_gradients()
        with self._routing.training(minibatch.num_sequences):
            shares = accumulate_gradients(self._model, loaded.microbatches([minibatch]), loss)
        metrics = combine(shares) | self._routing.metrics()
        return metrics.pop(_OBJECTIVE, 0.0), self._optimizer.gradient_norm(), metrics

    def _share(
        self, microbatch: Microbatch, logp_R: Tensor, entropy_R: Tensor, totals: Totals
    ) -> tuple[Tensor, Metrics]:
        """This microbatch's share of the objective, and of the metrics."""
        tokens = Tokens(
            microbatch.seq_R, torch.ones_like(microbatch.seq_R, dtype=torch.bool), microbatch.num_seqs
        )
        columns = {name: column_U[microbatch.trained_R] for name, column_U in self._loaded.columns.items()}
        scalar, metrics = self._objective(logp_R, entropy_R, columns, columns["advantage"], tokens, totals)
        metrics.sum[_OBJECTIVE] = scalar.detach().clone()  # Megatron scales the loss in place
        return scalar, metrics

    def _build_process_model(self, config: TransformerConfig) -> ProcessModel:
        setup, estimator = self._setup, self._coefficients.estimator
        return ProcessModel(
            setup.algorithm.process_model,
            self._build(config),
            self.tensors(),
            beta=cast(Any, getattr(estimator, "inner", estimator)).beta,
            temperature=setup.temperature,
        )

    def _build_critic(self, config: TransformerConfig) -> Critic:
        model, num_steps = self._build(config, value_head=True), self._setup.num_optimizer_steps
        return Critic(self._setup.critic, model, self.tensors(), num_steps=num_steps)

    def _build(
        self, config: TransformerConfig, *, value_head: bool = False, adapters: AdapterLayout | None = None
    ) -> Stage:
        setup, vocab = self._setup, self.layout.padded_vocab
        options = {"value_head": value_head, "overlap": setup.actor.overlap, "adapters": adapters}
        return build(config, setup.model, vocab, self.device, **options)

    def _adapter_layout(self) -> AdapterLayout | None:
        chosen = self._setup.actor.lora
        if chosen is None:
            return None
        return AdapterLayout.on(self.layout, rank=chosen.rank, alpha=chosen.alpha, targets=chosen.targets)

    def _base(self) -> dict[str, Tensor]:
        """The live parameters without adapters."""
        names = self.layout.shards(self._setup.rank)
        return {name: parameter.data for name, parameter in named_parameters(self._model) if name in names}

    def _frozen_policies(self, needs: Set[str]) -> FrozenPolicies:
        weights: dict[str, dict[str, Tensor]] = {}
        if "ref_logp" in needs:
            whole = self._setup.actor.lora is None  # with adapters, the model without them is the reference
            weights["ref_logp"] = reference_weights(self._base()) if whole else {}
        if "teacher_logp" in needs:
            weights["teacher_logp"] = teacher_weights(self._setup, self.layout, self._base())
        return FrozenPolicies(self._model, self._scorer, weights)

    def _make_columns(self) -> Columns:
        models = Askable(
            scorer=self._scorer,
            half_scorer=Scorer(self._model, self._setup.temperature / 2),
            frozen=self._frozen,
            process=self._process,
            critic=self._critic,
        )
        watches = self._guards and watch.trains_on_all_samples(self._setup.algorithm)
        return Columns(self._objective, self._coefficients, models, self._needs, watches_divergence=watches)

    def _make_offload(self) -> Offload:
        """Of everything that the weight swap does not read, as far as the config says."""
        parts, choice = self._trained, self._setup.actor.offload
        state = [tensor for _, optimizer in parts.values() for tensor in optimizer.tensors().values()]
        if choice != "all":
            return Offload(state if choice == "optimizer" else ())
        beside = [
            parameter.data
            for part, (stage, _) in parts.items()
            if part != "policy"
            for _, parameter in named_parameters(stage)
        ]
        gradients = [buffer for model, _ in parts.values() for buffer in gradient_buffers(model)]
        return Offload([*state, *self._frozen.tensors(), *beside], gradients)

    @property
    def _trained(self) -> dict[str, checkpoint.Trained]:
        """What a checkpoint holds."""
        parts = {"policy": (self._model, self._optimizer)}
        if self._process is not None:
            parts["process_model"] = (self._process.model, self._process.optimizer)
        if self._critic is not None:
            parts["critic"] = (self._critic.model, self._critic.optimizer)
        return parts


_OBJECTIVE = "objective"


def _by_tokens(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Neighbours of at most `limit` tokens together; a longer one by itself."""
    rows: list[int] = []
    room = limit
    for n, length in enumerate(lengths):
        if length > room and rows:
            yield rows
            rows, room = [], limit
        rows.append(n)
        room -= length
    yield rows
