"""The actor on one Megatron rank: columns of a batch, optimizer steps, checkpoints.

Every method of MegatronPolicy except `tensors` is *collective*: all ranks call it, in the same order.
Log-probabilities exist on the last pipeline stage only; what is returned is broadcast from there.
Shape letters: U trained tokens of the whole batch, R those of one microbatch, T tokens of a block.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import Advantage, AdvantageEstimator, Known, Metrics, Tokens, Totals, argument
from hybridrl.algorithms.guards import stop
from hybridrl.algorithms.objective import Objective
from hybridrl.batch import RankBatch, TokenBlock
from hybridrl.errors import NonFiniteError
from hybridrl.hosts import cpu
from hybridrl.reshard.checkpoint import export_hf, load_hf
from hybridrl.trainer.megatron import checkpoint, watch
from hybridrl.trainer.megatron.agreement import agreement
from hybridrl.trainer.megatron.coefficients import Coefficients
from hybridrl.trainer.megatron.collectives import DataParallelReduce, combine, from_last_stage
from hybridrl.trainer.megatron.critic import Critic, value_metrics
from hybridrl.trainer.megatron.loaded import LoadedBatch
from hybridrl.trainer.megatron.model import build, named_parameters
from hybridrl.trainer.megatron.optimizer import Optimizer
from hybridrl.trainer.megatron.packing import Microbatch, PackedBatch
from hybridrl.trainer.megatron.process_model import ProcessModel
from hybridrl.trainer.megatron.schedule import accumulate_gradients
from hybridrl.trainer.megatron.score import Scorer
from hybridrl.trainer.megatron.setup import leave, make_layout, start, transformer_config
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
        self._guards = setup.algorithm.guards == "stop"
        with cpu.scope():
            self._device = start(setup)
            self.layout = make_layout(setup)
            config = transformer_config(setup, self._device)
            self._model = build(config, setup.model, self.layout.padded_vocab, self._device)
            load_hf(setup.model_folder, self.layout, setup.rank, self.tensors())
            self._optimizer = Optimizer(setup.actor.optimizer, self._model, setup.num_optimizer_steps)
            self._critic = self._build_critic(config) if "value" in self._needs else None
            self._process = self._build_process_model(config) if "process_logp" in self._needs else None
        self._scorer = Scorer(self._model, setup.temperature)
        self._reduce = DataParallelReduce()
        self._on_last_stage = parallel_state.is_pipeline_last_stage()
        self._divergence: float | None = None
        self._frozen = self._frozen_policies()

    def tensors(self) -> dict[str, Tensor]:
        """The live parameters of this rank, by their name in `layout`."""
        return {name: parameter.data for name, parameter in named_parameters(self._model)}

    def load(self, batch: RankBatch) -> dict[str, float]:
        """Take a batch and compute the columns that the algorithm needs, over the very microbatches of the
        steps to come.

        A batch of a single optimizer step leaves old_logp to the forward pass of that step, unless something
        needs it before.

        Returns:
            How far trainer and engine agree about the trained tokens, the entropy, and what the objective
            reports on the whole batch; the same on every rank.
        """
        if self._guards:
            stop(watch.masks(batch), step=batch.step)
        self._loaded = LoadedBatch(batch, parallel_state.get_data_parallel_rank(), self._device)
        if "lag" in self._needs:
            self._loaded.add_lag()
        one_step = len(batch.minibatches) == 1
        needs_now = (
            batch.advantage_N is None
            or self._objective.prepares
            or "old_entropy" in self._needs
            or self._coefficients.follows_kl
        )
        metrics: dict[str, float] = {}
        with cpu.scope():
            if needs_now or not one_step:
                metrics |= self._add_policy_columns()
            self._add_collision()
            for column, weights in self._frozen.items():
                self._add_frozen_column(column, weights)
            if "ref_logp" in self._frozen:
                metrics |= self._measure_divergence(batch)
            if self._process is not None:
                metrics |= self._process.train(self._loaded)
                self._loaded.add("process_logp", self._process.logp(self._loaded))
            if self._critic is not None:
                self._loaded.add("value", self._critic.values(self._loaded))
            if batch.advantage_N is None:
                metrics |= self._add_advantage()
            if self._objective.prepares:
                metrics |= self._add_prepared_columns()
            if self._on_last_stage:
                self._loaded.share(self._reduce)
        return metrics

    def step(self, index: int) -> StepReport:
        """One optimizer step on minibatch `index` of the loaded batch.

        Returns:
            The same report on every rank.

        Raises:
            NonFiniteError: loss or gradient norm is inf or NaN; parameters and optimizer are as they were.
            GuardError: a check of the first step failed; parameters and optimizer are as they were.
        """
        loaded, minibatch = self._loaded, self._loaded.minibatches[index]
        totals = Totals(minibatch.num_tokens, minibatch.num_sequences)
        fills_old_logp = "old_logp" not in loaded.columns
        if fills_old_logp:
            loaded.add("old_logp", loaded.packed.zeros_U())

        def loss(microbatch: Microbatch, hidden_R1: Tensor) -> tuple[Tensor, Metrics]:
            logp_R, entropy_R = self._scorer.score(microbatch, hidden_R1)
            if fills_old_logp:
                loaded.columns["old_logp"][microbatch.trained_R] = logp_R.detach()
            return self._share(microbatch, logp_R, entropy_R, totals)

        with cpu.scope():
            self._optimizer.zero_gradients()
            shares = accumulate_gradients(self._model, loaded.microbatches([minibatch]), loss)
            metrics = combine(shares)
            objective = metrics.pop(_OBJECTIVE, 0.0)
            grad_norm = self._optimizer.gradient_norm()
            if not (math.isfinite(objective) and math.isfinite(grad_norm)):
                where = f"step {loaded.step}, minibatch {index}"
                raise NonFiniteError(f"loss {objective}, gradient norm {grad_norm}", where=where)
            if self._guards and index == 0 and not self._objective.bypass:
                stop(watch.ratio(metrics), step=loaded.step)
            only_critic = self._critic is not None and loaded.step <= self._setup.critic.pretrain_steps
            lr = 0.0 if only_critic else self._optimizer.step(grad_norm)
            if self._critic is not None:
                metrics |= self._critic.step(loaded, minibatch)
            if fills_old_logp:
                metrics |= self._agreement()
            if minibatch is loaded.minibatches[-1]:
                entropy = metrics.get("actor/entropy", 0.0)  # none where no rank has a trained token
                self._coefficients.after_batch(self._divergence, entropy, len(loaded.reward_N))
        return StepReport(loaded.step, objective, grad_norm, lr, metrics)

    def logp(self, block: TokenBlock) -> np.ndarray:
        """Log-probability of the trained tokens of a block, 0 elsewhere; float32 [T].

        Every data-parallel rank computes all of it: for checks, not for training.
        """
        zero_N, row_N = np.zeros(len(block), np.int64), np.arange(len(block))
        batch = RankBatch(0, [block], zero_N, row_N, zero_N, zero_N.astype(np.float32), None)
        packed, lengths = PackedBatch(batch, self._device), np.diff(block.start_N).tolist()
        rows_of = _by_tokens(lengths, self._setup.actor.microbatch_tokens)
        microbatches = [packed.microbatch(rows) for rows in rows_of]
        with cpu.scope():
            logp_U, _ = self._scorer.columns(packed, [m for m in microbatches if m is not None])
            logp_T = np.zeros(len(block.token_T), np.float32)
            logp_T[block.loss_mask_T] = logp_U.cpu().numpy()
            return from_last_stage(logp_T)

    def save(self, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
        """Write model, optimizer, schedule and random state into a new folder.

        Args:
            facts: what the commit record is to hold besides; JSON.

        Raises:
            CheckpointError: the folder exists.
        """
        with cpu.scope():
            coefficients = self._coefficients.state_dict()
            checkpoint.save(folder, self._trained, {**(facts or {}), "coefficients": coefficients})

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint as if there had been no interruption. The reference policy stays that of
        the model folder.

        Raises:
            CheckpointError: it is not whole, or was made with another topology.
        """
        with cpu.scope():
            facts = checkpoint.restore(folder, self._trained)
        self._coefficients.load_state_dict(facts["coefficients"])

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

    def close(self) -> None:
        """Leave the other ranks; the policy is of no use afterwards."""
        leave()

    @property
    def _needs(self) -> frozenset[str]:
        return self._objective.columns | self._estimator.needs

    @property
    def _estimator(self) -> AdvantageEstimator:
        return self._coefficients.estimator

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

    def _add_policy_columns(self) -> dict[str, float]:
        """old_logp and old_entropy, and a report on them."""
        loaded = self._loaded
        logp_U, entropy_U = self._scorer.columns(loaded.packed, loaded.microbatches(loaded.first_epoch))
        loaded.add("old_logp", logp_U)
        loaded.add("old_entropy", entropy_U)
        num_tokens = max(1, sum(m.num_tokens for m in loaded.first_epoch))
        return self._agreement() | combine([Metrics({"actor/entropy": entropy_U.sum() / num_tokens})])

    def _agreement(self) -> dict[str, float]:
        loaded = self._loaded
        return from_last_stage(agreement(loaded.held("rollout_logp"), loaded.held("old_logp"), self._reduce))

    def _frozen_policies(self) -> dict[str, dict[str, Tensor]]:
        """Weights of policies that are asked but not trained, by the column that they fill."""
        frozen = {}
        if "ref_logp" in self._needs:
            frozen["ref_logp"] = {n: t.clone() for n, t in self.tensors().items()}
        if "teacher_logp" in self._needs:
            assert self._setup.algorithm.teacher is not None, "load_credit asks for one"
            frozen["teacher_logp"] = {n: torch.empty_like(t) for n, t in self.tensors().items()}
            folder = Path(self._setup.algorithm.teacher)
            load_hf(folder, self.layout, self._setup.rank, frozen["teacher_logp"])
        return frozen

    def _build_process_model(self, config: TransformerConfig) -> ProcessModel:
        setup, estimator = self._setup, self._estimator
        return ProcessModel(
            setup.algorithm.process_model,
            build(config, setup.model, self.layout.padded_vocab, self._device),
            self.tensors(),
            beta=cast(Any, getattr(estimator, "inner", estimator)).beta,
            temperature=setup.temperature,
        )

    def _build_critic(self, config: TransformerConfig) -> Critic:
        setup, vocab = self._setup, self.layout.padded_vocab
        model = build(config, setup.model, vocab, self._device, value_head=True)
        return Critic(setup.critic, model, self.tensors(), num_steps=setup.num_optimizer_steps)

    @property
    def _trained(self) -> dict[str, checkpoint.Trained]:
        """What a checkpoint holds."""
        parts = {"policy": (self._model, self._optimizer)}
        if self._process is not None:
            parts["process_model"] = (self._process.model, self._process.optimizer)
        if self._critic is not None:
            parts["critic"] = (self._critic.model, self._critic.optimizer)
        return parts

    def _add_collision(self) -> None:
        """sum p^2 = exp(2 logp - logp'), with logp' at half the temperature, whatever token both are of."""
        loaded = self._loaded
        if "old_collision" in self._needs:
            half = Scorer(self._model, self._setup.temperature / 2)
            logp_U, _ = half.columns(loaded.packed, loaded.microbatches(loaded.first_epoch))
            loaded.add_held("old_collision", (2 * loaded.columns["old_logp"] - logp_U)[loaded.held_H].exp())

    def _add_frozen_column(self, column: str, weights: Mapping[str, Tensor]) -> None:
        loaded = self._loaded
        with self._weights(weights):
            logp_U, _ = self._scorer.columns(loaded.packed, loaded.microbatches(loaded.first_epoch))
        loaded.add(column, logp_U)

    def _measure_divergence(self, batch: RankBatch) -> dict[str, float]:
        """How far policy and reference are apart, where old_logp is known by now."""
        loaded = self._loaded
        if "old_logp" not in loaded.columns:
            return {}
        if self._guards and self._on_last_stage:
            stop(watch.divergence(batch, loaded), step=batch.step)
        apart_U = loaded.columns["old_logp"] - loaded.columns["ref_logp"]
        num_tokens = max(1, sum(m.num_tokens for m in loaded.first_epoch))
        self._divergence = combine([Metrics({"kl": apart_U.sum() / num_tokens})])["kl"]
        weight = getattr(self._estimator, "kl_coefficient", 0.0)
        if not weight:
            return {}
        return {"actor/reward_kl_penalty": self._divergence, "actor/reward_kl_penalty_coeff": weight}

    def _add_advantage(self) -> dict[str, float]:
        """By an estimator that needs token columns; with the returns if it has a value function."""
        if not self._on_last_stage:
            return from_last_stage({})
        loaded = self._loaded
        columns = {argument(c): loaded.held(c) for c in self._estimator.needs & loaded.columns.keys()}
        columns |= {argument(c): column_N for c, column_N in loaded.scalars.items()}
        advantage = self._estimator(
            reward_N=loaded.reward_N,
            group_N=loaded.group_N,
            tokens=loaded.tokens_H,
            reduce=self._reduce,
            **columns,
        )
        assert isinstance(advantage, Advantage), "an estimator that needs token columns returns token columns"
        loaded.add_held("advantage", advantage.advantage_T)
        if advantage.return_T is None:
            return from_last_stage({})
        loaded.add_held("return", advantage.return_T)
        return from_last_stage(value_metrics(loaded, self._reduce))

    def _add_prepared_columns(self) -> dict[str, float]:
        """What the objective makes of the whole batch."""
        if not self._on_last_stage:
            return from_last_stage({})
        loaded = self._loaded
        columns = {name: loaded.held(name) for name in loaded.columns}
        advantage_H = columns.pop("advantage")
        known = Known(loaded.step, loaded.reward_N, loaded.group_N, advantage_H, loaded.tokens_H, columns)
        prepared = self._objective.prepare(known, self._reduce)
        for name, value_H in prepared.columns.items():
            loaded.add_held(name, value_H)
        return from_last_stage({name: float(value) for name, value in prepared.metrics.items()})

    @contextlib.contextmanager
    def _weights(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the model computes with other weights; the live ones are not touched."""
        live = self.tensors()
        self._point_to(tensors)
        try:
            yield
        finally:
            self._point_to(live)

    def _point_to(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in named_parameters(self._model):
            parameter.data = tensors[name]


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
