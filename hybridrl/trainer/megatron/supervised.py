"""Training on examples on one Megatron rank: the likelihood of answers (SFT), or which of two is better (RM).

Every method of MegatronSupervised except `tensors` is *collective*: all ranks call it, in the same order.
Shape letters: R trained tokens of a microbatch, O those that this rank predicts, P its pairs.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from torch import Tensor

from hybridrl.algorithms.base import Metrics
from hybridrl.batch import Minibatch, RankBatch
from hybridrl.errors import NonFiniteError
from hybridrl.hosts import cpu
from hybridrl.models.spec import read, without_vocabulary
from hybridrl.reshard.checkpoint import export_hf, load_hf
from hybridrl.trainer.megatron import checkpoint
from hybridrl.trainer.megatron.architecture import transformer_config
from hybridrl.trainer.megatron.collectives import combine
from hybridrl.trainer.megatron.loaded import LoadedBatch
from hybridrl.trainer.megatron.model import build, named_parameters
from hybridrl.trainer.megatron.optimizer import Optimizer
from hybridrl.trainer.megatron.packing import Deal, Microbatch
from hybridrl.trainer.megatron.schedule import accumulate_gradients, evaluate
from hybridrl.trainer.megatron.score import Scorer, values
from hybridrl.trainer.megatron.setup import leave, make_layout, start
from hybridrl.trainer.setup import TrainerSetup, megatron_layout
from hybridrl.types import StepReport

Loss = Callable[[LoadedBatch, Minibatch, Microbatch, Tensor], tuple[Tensor, Metrics]]
"""A microbatch's share of the objective, and of the metrics."""

LOSS = "train/loss"


class MegatronSupervised:
    def __init__(self, setup: TrainerSetup) -> None:
        """Join the other ranks and build the model with the weights of the model folder.

        A model with a value head learns which of two answers is better, others learn answers. A head that the
        folder lacks begins as 0.

        Raises:
            ResourceError, LayoutError, ModelError: as MegatronPolicy.
        """
        self._setup = setup
        with cpu.scope():
            self._device = start(setup)
            self.layout = make_layout(setup)
            config = transformer_config(setup, self._device)
            self._deal = Deal.here(config)
            scores, overlap = setup.model.value_head, setup.actor.overlap
            size = self.layout.padded_vocab
            self._model = build(config, setup.model, size, self._device, value_head=scores, overlap=overlap)
            load_hf(setup.model_folder, self._initial_layout(), setup.rank, self.tensors())
            self._optimizer = Optimizer(setup.actor.optimizer, self._model, setup.num_optimizer_steps)
            self._scorer = Scorer(self._model, temperature=1.0)
        self._saver = checkpoint.Saver(self.layout, timeout_s=setup.timeout_s)
        self._loss: Loss = self._preference if scores else self._likelihood

    def tensors(self) -> dict[str, Tensor]:
        """The live parameters of this rank, by their name in `layout`."""
        return {name: parameter.data for name, parameter in named_parameters(self._model)}

    def step(self, batch: RankBatch) -> StepReport:
        """One optimizer step on a batch of one minibatch. The better answer of a pair has an even row, the
        other the next.

        Returns:
            The same report on every rank.

        Raises:
            NonFiniteError: loss or gradient norm is inf or NaN; parameters and optimizer are as they were.
        """
        loaded = self._load(batch)
        (minibatch,) = loaded.minibatches
        with cpu.scope():
            self._optimizer.zero_gradients()
            share = partial(self._loss, loaded, minibatch)
            metrics = combine(accumulate_gradients(self._model, loaded.microbatches([minibatch]), share))
            grad_norm = self._optimizer.gradient_norm()
            if not (math.isfinite(metrics[LOSS]) and math.isfinite(grad_norm)):
                what = f"loss {metrics[LOSS]}, gradient norm {grad_norm}"
                raise NonFiniteError(what, where=f"step {loaded.step}")
            lr = self._optimizer.step(grad_norm)
        return StepReport(loaded.step, metrics[LOSS], grad_norm, lr, metrics)

    def evaluate(self, batch: RankBatch) -> dict[str, float]:
        """What a step would report of a batch of one minibatch; nothing is learnt."""
        loaded = self._load(batch)
        (minibatch,) = loaded.minibatches
        shares: list[Metrics] = []

        def visit(microbatch: Microbatch, hidden_O1: Tensor) -> None:
            shares.append(self._loss(loaded, minibatch, microbatch, hidden_O1)[1])

        with cpu.scope():
            evaluate(self._model, loaded.microbatches([minibatch]), visit)
            return combine(shares)

    def save(self, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
        """Write model, optimizer, schedule and random state into a new folder.

        Raises:
            CheckpointError: the folder exists.
        """
        with cpu.scope():
            self._saver.save(folder, self._trained, facts or {})

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint as if there had been no interruption.

        Raises:
            CheckpointError: it is not whole, damaged, or of another model.
        """
        with cpu.scope():
            checkpoint.restore(folder, self.layout, self._trained, self._setup.seed)

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
        """Leave the other ranks; the model is of no use afterwards."""
        leave()

    @property
    def _trained(self) -> dict[str, checkpoint.Trained]:
        return {"policy": (self._model, self._optimizer)}

    def _initial_layout(self) -> Any:
        """Of what the model folder has of this model: its value head may be new."""
        spec = self._setup.model
        if spec.value_head and not read(self._setup.model_folder).value_head:
            return megatron_layout(
                without_vocabulary(spec, head="none"), self._setup.parallel, self._setup.host
            )
        return self.layout

    def _load(self, batch: RankBatch) -> LoadedBatch:
        return LoadedBatch(batch, parallel_state.get_data_parallel_rank(), self._device, self._deal)

    def _likelihood(
        self, loaded: LoadedBatch, minibatch: Minibatch, microbatch: Microbatch, hidden_O1: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Mean of -log p over the learnt tokens of the whole minibatch."""
        logp_R, _ = self._scorer.score(microbatch, hidden_O1)
        share = -logp_R.sum() / minibatch.num_tokens
        return share, Metrics({LOSS: share.detach().clone()})  # Megatron scales the loss in place

    def _preference(
        self, loaded: LoadedBatch, minibatch: Minibatch, microbatch: Microbatch, hidden_O1: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Mean of -log sigmoid(chosen - rejected - margin) over the pairs (Bradley and Terry 1952)."""
        row_R = loaded.trajectory_U[microbatch.trained_R]
        order_R = row_R.argsort()
        value_R = values(self._model, microbatch, hidden_O1)
        score_P2 = value_R[order_R].view(-1, 2)
        ahead_P = score_P2[:, 0] - score_P2[:, 1]
        margin_P = loaded.scalars["margin"][row_R[order_R][::2]]
        num_pairs = minibatch.num_sequences // 2
        share = -F.logsigmoid(ahead_P - margin_P).sum() / num_pairs
        means = {"train/accuracy": (ahead_P > 0).float(), "train/reward_gap": ahead_P.detach()}
        means |= {"train/reward": score_P2.detach().mean(1)}
        found = {name: (value_P / num_pairs).sum() for name, value_P in means.items()}
        return share, Metrics({LOSS: share.detach().clone(), **found})
