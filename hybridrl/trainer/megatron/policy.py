"""The actor on one Megatron rank: columns of a batch, optimizer steps, checkpoints.

Every method of MegatronPolicy except `tensors` is *collective*: all ranks call it, in the same order. Log-probabilities exist
on the last pipeline stage only; what is returned is broadcast from there.
Shape letters: U trained tokens of the whole batch, R those of one microbatch, N trajectories, T tokens of a block.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import SCALAR_COLUMNS, TOKEN_COLUMNS, Metrics, Tokens, Totals, argument
from hybridrl.algorithms.objective import Objective
from hybridrl.batch import Minibatch, RankBatch, TokenBlock
from hybridrl.errors import NonFiniteError
from hybridrl.hosts import cpu
from hybridrl.reshard.checkpoint import export_hf, load_hf
from hybridrl.trainer.megatron import checkpoint
from hybridrl.trainer.megatron.agreement import agreement
from hybridrl.trainer.megatron.collectives import DataParallelReduce, combine, from_last_stage
from hybridrl.trainer.megatron.model import build, named_parameters
from hybridrl.trainer.megatron.optimizer import Optimizer
from hybridrl.trainer.megatron.packing import Microbatch, PackedBatch
from hybridrl.trainer.megatron.schedule import accumulate_gradients
from hybridrl.trainer.megatron.score import Scorer
from hybridrl.trainer.megatron.setup import TrainerSetup, make_layout, start, transformer_config
from hybridrl.types import StepReport

__all__ = ["MegatronPolicy", "TrainerSetup"]


class MegatronPolicy:
    def __init__(self, setup: TrainerSetup) -> None:
        """Join the other ranks and build the model with the weights of the model folder.

        Raises:
            LayoutError, ModelError: the model cannot be split as asked, or has a part that is not supported.
            ConfigError: an algorithm plug-in that does not exist.
        """
        self._setup = setup
        self._objective = Objective(setup.algorithm, max_response_tokens=setup.max_response_tokens)
        self._estimator = load_estimator(setup.algorithm)
        with cpu.scope():
            self._device = start(setup)
            self.layout = make_layout(setup, self._device)
            self._model = build(
                transformer_config(setup, self._device), setup.model, self.layout.padded_vocab, self._device
            )
            load_hf(setup.model_folder, self.layout, setup.rank, self.tensors())
            self._optimizer = Optimizer(setup.actor.optimizer, self._model, setup.num_optimizer_steps)
        self._scorer = Scorer(self._model, setup.temperature)
        self._reduce = DataParallelReduce()
        self._dp_rank = parallel_state.get_data_parallel_rank()
        self._on_last_stage = parallel_state.is_pipeline_last_stage()
        needs_reference = "ref_logp" in self._needs
        self._reference = {n: t.clone() for n, t in self.tensors().items()} if needs_reference else None

    @property
    def _needs(self) -> frozenset[str]:
        return self._objective.columns | self._estimator.needs

    def tensors(self) -> dict[str, Tensor]:
        """The live parameters of this rank, by their name in `layout`."""
        return {name: parameter.data for name, parameter in named_parameters(self._model)}

    def load(self, batch: RankBatch) -> dict[str, float]:
        """Take a batch and compute the columns that the algorithm needs, over the very microbatches of the steps to come.

        A batch of a single optimizer step leaves old_logp to the forward pass of that step, unless something needs it before.

        Returns:
            How far trainer and engine agree about the trained tokens, and the entropy; the same on every rank.
        """
        self._batch, self._packed = batch, PackedBatch(batch, self._device)
        self._columns = {"rollout_logp": self._packed.column_U("rollout_logp_T")}
        self._first_epoch = _first_epoch(batch.minibatches)
        early = len(batch.minibatches) > 1 or batch.advantage_N is None
        with cpu.scope():
            metrics = self._add_old_logp() if early else {}
            if self._reference is not None:
                with self._reference_weights():
                    self._columns["ref_logp"], _ = self._scorer.columns(
                        self._packed, self._microbatches(self._first_epoch)
                    )
            self._columns["advantage"] = self._advantage_U()
            self._share_columns()
        return metrics

    def step(self, index: int) -> StepReport:
        """One optimizer step on minibatch `index` of the loaded batch.

        Returns:
            The same report on every rank.

        Raises:
            NonFiniteError: loss or gradient norm is inf or NaN; parameters and optimizer are as they were.
        """
        minibatch = self._batch.minibatches[index]
        totals = Totals(minibatch.num_tokens, minibatch.num_sequences)
        late_old_logp = "old_logp" not in self._columns
        if late_old_logp:
            self._columns["old_logp"] = self._packed.zeros_U()

        def loss(microbatch: Microbatch, logits_RV: Tensor) -> tuple[Tensor, Metrics]:
            logp_R, entropy_R = self._scorer.score(microbatch, logits_RV)
            if late_old_logp:
                self._columns["old_logp"][microbatch.trained_R] = logp_R.detach()
            return self._share(microbatch, logp_R, entropy_R, totals)

        with cpu.scope():
            self._optimizer.zero_gradients()
            shares = accumulate_gradients(self._model, self._microbatches([minibatch]), loss)
            metrics = combine(shares)
            objective = metrics.pop("objective", 0.0)
            grad_norm = self._optimizer.gradient_norm()
            if not (math.isfinite(objective) and math.isfinite(grad_norm)):
                raise NonFiniteError(
                    f"loss {objective}, gradient norm {grad_norm}",
                    where=f"step {self._batch.step}, minibatch {index}",
                )
            lr = self._optimizer.step(grad_norm)
            if late_old_logp:
                metrics |= self._agreement()
        return StepReport(self._batch.step, objective, grad_norm, lr, metrics)

    def logp(self, block: TokenBlock) -> np.ndarray:
        """Log-probability of every trained token of a block under the present weights, 0 elsewhere; float32 [T].

        Every data-parallel rank computes all of it: for checks, not for training.
        """
        zero_N = np.zeros(len(block), np.int64)
        batch = RankBatch(
            0, [block], zero_N, np.arange(len(block)), zero_N, np.zeros(len(block), np.float32), None
        )
        packed = PackedBatch(batch, self._device)
        microbatches = [packed.microbatch([n]) for n in range(len(block))]
        with cpu.scope():
            logp_U, _ = self._scorer.columns(packed, [m for m in microbatches if m is not None])
            logp_T = np.zeros(len(block.token_T), np.float32)
            logp_T[block.loss_mask_T] = logp_U.cpu().numpy()
            return from_last_stage(logp_T)

    def save(self, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
        """Write model, optimizer, schedule and random state into a new folder: it will be whole, or refused by `restore`.

        Raises:
            CheckpointError: the folder exists.
        """
        with cpu.scope():
            checkpoint.save(folder, self._model, self._optimizer, facts)

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint as if there had been no interruption. The reference stays that of the model folder.

        Raises:
            CheckpointError: it is not whole, or was made with another topology.
        """
        with cpu.scope():
            checkpoint.restore(folder, self._model, self._optimizer)

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

    def _share(
        self, microbatch: Microbatch, logp_R: Tensor, entropy_R: Tensor, totals: Totals
    ) -> tuple[Tensor, Metrics]:
        """This microbatch's share of the objective, and of the metrics."""
        tokens = Tokens(
            microbatch.seq_R, torch.ones_like(microbatch.seq_R, dtype=torch.bool), microbatch.num_seqs
        )
        columns = {name: column_U[microbatch.trained_R] for name, column_U in self._columns.items()}
        scalar, metrics = self._objective(logp_R, entropy_R, columns, columns["advantage"], tokens, totals)
        metrics.sum["objective"] = scalar.detach().clone()  # Megatron scales the loss in place
        return scalar, metrics

    def _add_old_logp(self) -> dict[str, float]:
        """Add the log-probabilities before the first step, and report on them."""
        logp_U, entropy_U = self._scorer.columns(self._packed, self._microbatches(self._first_epoch))
        self._columns["old_logp"] = logp_U
        num_tokens = max(1, sum(m.num_tokens for m in self._first_epoch))
        entropy = combine([Metrics({"actor/entropy": entropy_U.sum() / num_tokens})])
        return self._agreement() | entropy

    def _agreement(self) -> dict[str, float]:
        here_U, _ = self._packed.trained(self._rows_here())
        rollout_logp_U, old_logp_U = self._columns["rollout_logp"][here_U], self._columns["old_logp"][here_U]
        return from_last_stage(agreement(rollout_logp_U, old_logp_U, self._reduce))

    def _advantage_U(self) -> Tensor:
        """From the controller, or from an estimator that needs token columns: 0 at tokens of other data-parallel ranks."""
        advantage_U = self._packed.zeros_U()
        if self._batch.advantage_N is not None:
            at_U, trajectory = self._packed.trained(range(len(self._batch.advantage_N)))
            advantage_U[at_U] = torch.from_numpy(self._batch.advantage_N).to(self._device)[trajectory]
        elif self._on_last_stage:
            here_U, trajectory = self._packed.trained(self._rows_here())
            tokens = Tokens(
                trajectory, torch.ones_like(trajectory, dtype=torch.bool), len(self._batch.reward_N)
            )
            columns = {
                argument(c): self._columns[c][here_U] for c in self._estimator.needs & self._columns.keys()
            }
            scalars = {"length_N": self._packed.length_N} if "length" in self._estimator.needs else {}
            reward_N, group_N = torch.from_numpy(self._batch.reward_N), torch.from_numpy(self._batch.group_N)
            advantage_U[here_U] = self._estimator(
                reward_N=reward_N.to(self._device),
                group_N=group_N.to(self._device),
                tokens=tokens,
                reduce=self._reduce,
                **columns,
                **scalars,
            ).advantage_T
        return advantage_U

    def _share_columns(self) -> None:
        """Give every data-parallel rank the columns of trajectories that it holds in later epochs only."""
        if not self._on_last_stage or _rows_stay(self._batch.minibatches):
            return
        computed = {"old_logp", "ref_logp"} | ({"advantage"} if self._batch.advantage_N is None else set())
        for name in sorted(computed & self._columns.keys()):
            self._columns[name] = self._reduce.sum(self._columns[name])

    def _microbatches(self, minibatches: Iterable[Minibatch]) -> list[Microbatch]:
        """Those of this data-parallel rank that have a trained token."""
        packed = (self._packed.microbatch(rows) for m in minibatches for rows in m.rows[self._dp_rank])
        return [microbatch for microbatch in packed if microbatch is not None]

    def _rows_here(self) -> list[int]:
        """Trajectories of this data-parallel rank."""
        return [n for minibatch in self._first_epoch for rows in minibatch.rows[self._dp_rank] for n in rows]

    @contextlib.contextmanager
    def _reference_weights(self) -> Iterator[None]:
        """Inside, the model computes with the initial weights; the live ones are not touched."""
        live = {name: parameter.data for name, parameter in named_parameters(self._model)}
        self._point_to(self._reference)
        try:
            yield
        finally:
            self._point_to(live)

    def _point_to(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in named_parameters(self._model):
            parameter.data = tensors[name]


def _first_epoch(minibatches: Sequence[Minibatch]) -> Sequence[Minibatch]:
    """The minibatches before the first one that repeats a trajectory."""
    seen: set[int] = set()
    for i, minibatch in enumerate(minibatches):
        rows = {n for _, n in _placed(minibatch)}
        if rows & seen:
            return minibatches[:i]
        seen |= rows
    return minibatches


def _rows_stay(minibatches: Sequence[Minibatch]) -> bool:
    """Every trajectory is on the same data-parallel rank in all epochs."""
    home: dict[int, int] = {}
    return all(
        home.setdefault(n, rank) == rank for minibatch in minibatches for rank, n in _placed(minibatch)
    )


def _placed(minibatch: Minibatch) -> Iterator[tuple[int, int]]:
    """(data-parallel rank, trajectory) of all its trajectories."""
    return (
        (rank, n) for rank, microbatches in enumerate(minibatch.rows) for rows in microbatches for n in rows
    )
