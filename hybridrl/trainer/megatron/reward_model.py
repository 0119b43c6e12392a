"""A reward model on one Megatron rank: a score of every whole trajectory. It is asked and never trained.

Its ranks may be those of the actor, whose cut it then has, or its own. Every method is *collective*.
Shape letters: N trajectories, T tokens of a block, U rows of all blocks: each has one score.
"""

import numpy as np
import torch
from megatron.core import parallel_state

from hybridrl.batch import RankBatch, TokenBlock
from hybridrl.errors import DataError
from hybridrl.hosts import cpu
from hybridrl.reshard.checkpoint import load_hf
from hybridrl.trainer.megatron.collectives import DataParallelReduce
from hybridrl.trainer.megatron.frozen import frozen_model
from hybridrl.trainer.megatron.loaded import LoadedBatch
from hybridrl.trainer.megatron.model import named_parameters
from hybridrl.trainer.megatron.offload import Offload
from hybridrl.trainer.megatron.packing import Deal
from hybridrl.trainer.megatron.score import value_column
from hybridrl.trainer.megatron.setup import leave, make_layout, start
from hybridrl.trainer.setup import TrainerSetup


class RewardModel:
    """On ranks that have joined each other."""

    def __init__(self, setup: TrainerSetup, device: torch.device) -> None:
        """
        Args:
            setup: of a model with a value head.
            device: of this rank.

        Raises:
            LayoutError, ModelError: as MegatronPolicy.
        """
        self._device, self._folder = device, setup.model_folder
        self._vocab_size = setup.model.vocab_size
        with cpu.scope():
            layout = make_layout(setup)
            self._model = frozen_model(setup, layout, device, value_head=True)
            weights = {name: parameter.data for name, parameter in named_parameters(self._model)}
            load_hf(setup.model_folder, layout, setup.rank, weights)
            self._offload = Offload(weights.values() if setup.actor.offload == "all" else ())
            self._offload.leave()
        self._reduce = DataParallelReduce()

    def scores(self, batch: RankBatch) -> np.ndarray | None:
        """What the model says after the last token of each trajectory, float32 [N]; None except on the last
        pipeline stage.

        Args:
            batch: of one minibatch; columns other than the tokens are not looked at.

        Raises:
            DataError: a token is not in the model's vocabulary.
        """
        self._refuse_unknown_tokens(batch)
        scored = batch.with_blocks(with_place_of_score(block) for block in batch.blocks)
        dp_rank, deal = parallel_state.get_data_parallel_rank(), Deal.here(self._model[0].config)
        loaded = LoadedBatch(scored, dp_rank, self._device, deal)
        with cpu.scope():
            with self._offload.at_home():
                microbatches = loaded.microbatches(loaded.minibatches)
                score_U = value_column(self._model, loaded.packed, microbatches)
            if not parallel_state.is_pipeline_last_stage():
                return None
            score_U = self._reduce.sum(score_U)
        at_U, trajectory_U = loaded.packed.trained(range(len(batch.row_N)))
        score_N = torch.zeros(len(batch.row_N), device=self._device)
        score_N[trajectory_U] = score_U[at_U]
        return score_N.cpu().numpy()

    def _refuse_unknown_tokens(self, batch: RankBatch) -> None:
        largest = max((int(block.token_T.max(initial=0)) for block in batch.blocks), default=0)
        if largest >= self._vocab_size:
            raise DataError(
                f"an answer has token {largest}, the reward model has a vocabulary of {self._vocab_size}",
                where=str(self._folder),
                fix="use one with as many rows in its embedding as the policy has",
            )


class RewardModelRanks:
    """On ranks of its own."""

    def __init__(self, setup: TrainerSetup) -> None:
        """Join the other ranks and build the model.

        Raises: as RewardModel.
        """
        with cpu.scope():
            device = start(setup)
        self._model = RewardModel(setup, device)

    def scores(self, batch: RankBatch) -> np.ndarray | None:
        """As RewardModel.scores."""
        return self._model.scores(batch)

    def close(self) -> None:
        """Leave the other ranks."""
        leave()


def with_place_of_score(block: TokenBlock) -> TokenBlock:
    """The block with one more token in each row, its only trained one. The model never reads it: its place
    takes what the model says of all before."""
    end_N = block.start_N[1:]
    token_T = np.insert(block.token_T, end_N, 0)
    start_N = block.start_N + np.arange(len(block.start_N))
    mask_T = np.zeros(len(token_T), bool)
    mask_T[start_N[1:] - 1] = True
    return TokenBlock(
        token_T=token_T,
        start_N=start_N,
        prompt_tokens_N=np.diff(block.start_N).astype(np.int32),
        loss_mask_T=mask_T,
    )
