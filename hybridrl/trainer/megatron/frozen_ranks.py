"""Reference and teacher on ranks of their own: another cut than the actor's, so another group of processes.

They get the batches of the actor, dealt to their own ranks, and give columns back. Every method is
*collective*.
"""

from collections.abc import Sequence

import numpy as np
import torch
from megatron.core import parallel_state
from torch import Tensor

from hybridrl.batch import RankBatch
from hybridrl.hosts import cpu
from hybridrl.reshard.checkpoint import load_hf
from hybridrl.trainer.megatron.collectives import DataParallelReduce
from hybridrl.trainer.megatron.frozen import FrozenPolicies, frozen_folder, frozen_model
from hybridrl.trainer.megatron.loaded import LoadedBatch
from hybridrl.trainer.megatron.model import named_parameters
from hybridrl.trainer.megatron.offload import Offload
from hybridrl.trainer.megatron.packing import Deal
from hybridrl.trainer.megatron.score import Scorer
from hybridrl.trainer.megatron.setup import leave, make_layout, start
from hybridrl.trainer.setup import TrainerSetup


class FrozenRanks:
    def __init__(self, setup: TrainerSetup, columns: Sequence[str]) -> None:
        """Join the other ranks and hold the policies that fill `columns`: ref_logp, teacher_logp.

        Raises: as MegatronPolicy.
        """
        with cpu.scope():
            self._device = start(setup)
            layout = make_layout(setup)
            model = frozen_model(setup, layout, self._device)
            self._deal = Deal.here(model[0].config)
            own = {name: parameter.data for name, parameter in named_parameters(model)}
            held: dict[str, dict[str, Tensor]] = {}
            for column in columns:
                held[column] = {n: torch.empty_like(t) for n, t in own.items()} if held else own
                load_hf(frozen_folder(setup, column), layout, setup.rank, held[column])
            self._policies = FrozenPolicies(model, Scorer(model, setup.temperature), held)
            self._offload = Offload(self._policies.tensors() if setup.actor.offload == "all" else ())
            self._offload.leave()
        self._reduce = DataParallelReduce()

    def load(self, batch: RankBatch) -> None:
        """Take a batch and compute its columns."""
        dp_rank = parallel_state.get_data_parallel_rank()
        self._loaded = LoadedBatch(batch, dp_rank, self._device, self._deal)
        with cpu.scope(), self._offload.at_home():
            self._policies.add(self._loaded)

    def column(self, name: str) -> np.ndarray | None:
        """A column of the loaded batch, float32 [U]; None except on the last pipeline stage."""
        with cpu.scope():
            last = parallel_state.is_pipeline_last_stage()
            return self._loaded.whole(name, self._reduce).cpu().numpy() if last else None

    def close(self) -> None:
        """Leave the other ranks."""
        leave()
