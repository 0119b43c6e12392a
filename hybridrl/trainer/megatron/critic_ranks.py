"""The critic on ranks of its own: another cut than the actor's, so another group of processes.

It gets the batches of the actor, with minibatches of the same trajectories dealt to its own ranks. Its column
value goes to the actor's ranks, whose column return comes back. Every method is *collective*.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from megatron.core import parallel_state

from hybridrl.batch import RankBatch
from hybridrl.hosts import cpu
from hybridrl.models.spec import without_vocabulary
from hybridrl.reshard.checkpoint import load_hf
from hybridrl.trainer.megatron import checkpoint
from hybridrl.trainer.megatron.architecture import transformer_config
from hybridrl.trainer.megatron.collectives import DataParallelReduce
from hybridrl.trainer.megatron.critic import Critic
from hybridrl.trainer.megatron.loaded import LoadedBatch
from hybridrl.trainer.megatron.model import build, named_parameters
from hybridrl.trainer.megatron.offload import Offload, gradient_buffers
from hybridrl.trainer.megatron.packing import Deal
from hybridrl.trainer.megatron.setup import leave, make_layout, start
from hybridrl.trainer.setup import TrainerSetup


class CriticRanks:
    def __init__(self, setup: TrainerSetup) -> None:
        """Join the other ranks of the critic and build it from the model folder.

        Raises: as MegatronPolicy.
        """
        with cpu.scope():
            self._device = start(setup)
            layout, config = make_layout(setup), transformer_config(setup, self._device)
            self._layout, self._seed, self._deal = layout, setup.seed, Deal.here(config)
            self._saver = checkpoint.Saver(layout, timeout_s=setup.timeout_s, background=setup.async_save)
            size, overlap = layout.padded_vocab, setup.actor.overlap
            model = build(config, setup.model, size, self._device, value_head=True, overlap=overlap)
            trunk = replace(layout, spec=without_vocabulary(setup.model, head="none"))
            weights = {name: parameter.data for name, parameter in named_parameters(model)}
            load_hf(setup.model_folder, trunk, setup.rank, weights)
            self._critic = Critic(setup.critic, model, {}, num_steps=setup.num_optimizer_steps)
            self._offload = self._make_offload(setup.actor.offload)
            self._offload.leave()
        self._reduce = DataParallelReduce()

    def load(self, batch: RankBatch) -> None:
        """Take a batch and compute its column value."""
        with cpu.scope():
            self._offload.begin_return()
            self._offload.finish_return()
            dp_rank = parallel_state.get_data_parallel_rank()
            self._loaded = LoadedBatch(batch, dp_rank, self._device, self._deal)
            self._loaded.add("value", self._critic.values(self._loaded))
            if parallel_state.is_pipeline_last_stage():
                self._loaded.share(self._reduce)

    def column(self, name: str) -> np.ndarray | None:
        """A column of the loaded batch, float32 [U]; None except on the last pipeline stage."""
        with cpu.scope():
            last = parallel_state.is_pipeline_last_stage()
            return self._loaded.whole(name, self._reduce).cpu().numpy() if last else None

    def take(self, return_U: np.ndarray) -> None:
        """The column return of the loaded batch."""
        self._loaded.take("return", return_U)

    def step(self, index: int) -> dict[str, float]:
        """One optimizer step on minibatch `index` of the loaded batch.

        Returns:
            Metrics, the same on every rank.

        Raises:
            NonFiniteError: loss or gradient norm is inf or NaN; its weights are as they were.
        """
        loaded, minibatch = self._loaded, self._loaded.minibatches[index]
        with cpu.scope():
            metrics = self._critic.step(loaded, minibatch)
            if minibatch is loaded.minibatches[-1]:
                self._offload.leave()
        return metrics

    def save(self, folder: Path) -> None:
        """Write a checkpoint, as MegatronPolicy.save.

        Raises: as MegatronPolicy.save.
        """
        with cpu.scope(), self._offload.at_home():
            self._saver.save(folder, self._trained, {})

    def finish_saving(self) -> None:
        """As MegatronPolicy.finish_saving."""
        self._saver.finish()

    def restore(self, folder: Path) -> list[str]:
        """Continue from a checkpoint, as MegatronPolicy.restore."""
        with cpu.scope(), self._offload.at_home():
            return checkpoint.restore(folder, self._layout, self._trained, self._seed)[1]

    def close(self) -> None:
        """Leave the other ranks."""
        leave()

    @property
    def _trained(self) -> dict[str, checkpoint.Trained]:
        return {"critic": (self._critic.model, self._critic.optimizer)}

    def _make_offload(self, choice: str) -> Offload:
        state = list(self._critic.optimizer.tensors().values())
        if choice != "all":
            return Offload(state if choice == "optimizer" else ())
        weights = [parameter.data for _, parameter in named_parameters(self._critic.model)]
        return Offload([*state, *weights], gradient_buffers(self._critic.model))
