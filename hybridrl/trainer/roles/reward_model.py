"""A reward model on one rank: it scores whole trajectories and is never trained.

It is colocated with the actor, with the actor's parallel layout, or has dedicated ranks. Every method is
*collective*.
Shape letters: N trajectories, T tokens of a block, U rows of all blocks, one score for each.
"""

import numpy as np
import torch

from hybridrl.batch import RankBatch, TokenBlock
from hybridrl.errors import DataError
from hybridrl.trainer import base
from hybridrl.trainer.base import Backend
from hybridrl.trainer.offload import Offload
from hybridrl.trainer.roles.base import Role
from hybridrl.trainer.score import value_column
from hybridrl.trainer.setup import RankSetup


class RewardModel(Role):
    """A reward model on the ranks of a backend. The model has a value head."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        setup = backend.setup
        self._folder, self._vocab_size = setup.model_folder, setup.model.vocab_size
        with backend.scope():
            self._model = backend.build(value_head=True, trained=False)
            self._model.load(setup.model_folder)
            kept = self._model.tensors().values() if setup.actor.offload == "all" else ()
            self._offload = Offload(kept)
            self._offload.leave()

    def scores(self, batch: RankBatch) -> np.ndarray | None:
        """Score of each trajectory: the model's value after its last token, float32 [N]; None on all but the
        last pipeline stage.

        Args:
            batch: batch of one minibatch; only its tokens are used.

        Raises:
            DataError: a token is not in the model's vocabulary.
        """
        self._refuse_unknown_tokens(batch)
        scored = batch.with_blocks(with_place_of_score(block) for block in batch.blocks)
        loaded = self.backend.load(scored)
        with self.backend.scope():
            with self._offload.at_home():
                microbatches = loaded.microbatches(loaded.minibatches)
                score_U = value_column(self._model, loaded.packed, microbatches)
            if not self._mesh.is_last_stage:
                return None
            score_U = self._mesh.sum(score_U)
        at_U, trajectory_U = loaded.packed.trained(range(len(batch.row_N)))
        score_N = torch.zeros(len(batch.row_N), device=score_U.device)
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


class RewardModelRanks(RewardModel):
    """A reward model on dedicated ranks."""

    def __init__(self, setup: RankSetup) -> None:
        """Join the other ranks and build the model.

        Raises: the errors of base.open.
        """
        super().__init__(base.open(setup))


def with_place_of_score(block: TokenBlock) -> TokenBlock:
    """The block with one token appended to each row, as the only trained token of the row.

    The model never reads this token: the value before it is the score of the row.
    """
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
