"""PRIME's implicit process reward model on one rank: a copy of the policy, trained on outcomes only.

Source: Cui et al. 2025, "Process Reinforcement through Implicit Rewards", arXiv:2502.01456, algorithm 1: on
each batch the model is first trained and then evaluated.
Shape letters: U trained tokens of the batch, R trained tokens of one microbatch, S its sequences.
"""

import torch
from torch import Tensor

from hybridrl.algorithms.base import Metrics, Tokens
from hybridrl.algorithms.estimators.prime import implicit_reward_loss
from hybridrl.algorithms.sequences import sequence_sum
from hybridrl.config.training import ProcessModelConfig
from hybridrl.trainer.base import Model
from hybridrl.trainer.loaded import LoadedBatch
from hybridrl.trainer.mesh import Mesh
from hybridrl.trainer.places import Microbatch
from hybridrl.trainer.roles.base import optimizer_step
from hybridrl.trainer.score import Scorer


class ProcessModel:
    """The process reward model and its optimizer. Every method is *collective*."""

    def __init__(
        self, config: ProcessModelConfig, model: Model, mesh: Mesh, *, beta: float, temperature: float
    ) -> None:
        """
        Args:
            model: model with the initial weights, which are the policy's.
            beta: reward per nat of log-probability above the reference.
        """
        self._config, self._beta, self._mesh = config, beta, mesh
        self.part = model, model.optimizer(config.optimizer, num_steps=1)
        self._scorer = Scorer(model, temperature)

    def train(self, loaded: LoadedBatch) -> dict[str, float]:
        """Take one optimizer step on the outcomes of a batch that has column ref_logp.

        Raises:
            NonFiniteError: loss or gradient norm is inf or NaN; the model's weights are unchanged.
        """
        solved_U = (loaded.reward_N > self._config.solved_above)[loaded.trajectory_U]
        num_sequences = sum(m.num_sequences for m in loaded.first_epoch)

        def loss(microbatch: Microbatch, hidden_O1: Tensor) -> tuple[Tensor, Metrics]:
            process_logp_R, _ = self._scorer.score(microbatch, hidden_O1)
            ref_logp_R = loaded.columns["ref_logp"][microbatch.trained_R]
            tokens = Tokens(
                microbatch.seq_R, torch.ones_like(microbatch.seq_R, dtype=torch.bool), microbatch.num_seqs
            )
            solved_S = torch.zeros(microbatch.num_seqs, dtype=torch.bool, device=ref_logp_R.device)
            solved_S[microbatch.seq_R] = solved_U[microbatch.trained_R]
            share = implicit_reward_loss(
                process_logp_R, ref_logp_R, solved_S, tokens, beta=self._beta, num_sequences=num_sequences
            )
            logit_S = sequence_sum(process_logp_R.detach() - ref_logp_R, tokens)
            right = ((logit_S > 0) == solved_S)[microbatch.seq_R.unique()].sum() / num_sequences
            return share, Metrics({_LOSS: share.detach().clone(), "process/accuracy": right})

        microbatches, where = loaded.microbatches(loaded.first_epoch), f"step {loaded.step}"
        metrics, grad_norm, _ = optimizer_step(
            self.part, self._mesh, microbatches, loss, name=_LOSS, where=where
        )
        return metrics | {"process/grad_norm": grad_norm}

    def logp(self, loaded: LoadedBatch) -> Tensor:
        """Column process_logp, [U]."""
        logp_U, _ = self._scorer.columns(loaded.packed, loaded.microbatches(loaded.first_epoch))
        return logp_U


_LOSS = "process/loss"
