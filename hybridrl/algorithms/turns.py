"""Gathers the turns of agents from all ranks into one grid.

Shape letters: T packed tokens held here, N trajectories of the batch, K turns of the longest of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridrl.algorithms.base import Reduce, Tokens
from hybridrl.algorithms.groups import centre, group_std
from hybridrl.algorithms.sequences import at_last_token, masked


@dataclass(frozen=True, slots=True)
class Turns:
    """Every turn of the batch, the same on every rank."""

    exists_NK: Tensor
    """bool: whether the trajectory has this turn."""

    anchor_NK: Tensor
    """int64: state that the turn began in; 0 where there is no turn."""

    reward_NK: Tensor

    def returns(self, discount: float) -> Tensor:
        """R_k = r_k + discount * R_{k+1}, [N, K]."""
        return_NK = self.reward_NK.clone()
        for k in range(return_NK.shape[1] - 2, -1, -1):
            return_NK[:, k] += discount * return_NK[:, k + 1]
        return return_NK


def first_of_turn(turn_T: Tensor, tokens: Tokens) -> Tensor:
    """Whether each token is the first trained one of its turn, bool [T]; False outside the mask."""
    at_M = torch.nonzero(tokens.mask_T).flatten()
    seq_M, turn_M, first_M = tokens.seq_T[at_M], turn_T[at_M], torch.ones_like(at_M, dtype=torch.bool)
    first_M[1:] = (seq_M[1:] != seq_M[:-1]) | (turn_M[1:] != turn_M[:-1])
    return torch.zeros_like(tokens.mask_T).index_put((at_M,), first_M)


def step_rewards(reward_N: Tensor, turn_reward_T: Tensor, tokens: Tokens) -> Tensor:
    """Rewards of single turns that add up to the trajectory's reward, [T].

    The part of the reward that no turn was given, such as the score of the last answer, counts for the last
    turn.

    Args:
        reward_N: reward of the whole trajectory, rewards of its turns included.
        turn_reward_T: reward of the environment on the last token of each turn, 0 elsewhere.
    """
    own_T = masked(turn_reward_T, tokens).to(reward_N.dtype)
    turns_N = torch.zeros_like(reward_N).index_add(0, tokens.seq_T, own_T)
    return own_T + at_last_token(reward_N - turns_N, tokens)


def gather_turns(tokens: Tokens, turn_T: Tensor, anchor_T: Tensor, reward_T: Tensor, reduce: Reduce) -> Turns:
    """The grid of turns, from columns of the tokens held here; each trajectory is on one rank.
    *Collective*."""
    seq_M, turn_M = tokens.seq_T[tokens.mask_T], turn_T[tokens.mask_T]
    num_turns = int(reduce.max((turn_M + 1).max() if len(turn_M) else turn_M.new_ones(())))
    cell_M, shape = seq_M * num_turns + turn_M, (tokens.num_seqs, num_turns)
    zero_C = anchor_T.new_zeros(tokens.num_seqs * num_turns)
    count_C = reduce.sum(zero_C.index_add(0, cell_M, torch.ones_like(cell_M)))
    anchor_C = reduce.sum(zero_C.scatter(0, cell_M, anchor_T[tokens.mask_T]))
    reward_C = reward_T.new_zeros(len(zero_C)).index_add(0, cell_M, masked(reward_T, tokens)[tokens.mask_T])
    return Turns((count_C > 0).view(shape), anchor_C.view(shape), reduce.sum(reward_C).view(shape))


def normalise_turns(
    turns: Turns, return_NK: Tensor, peers: Tensor, *, scale_by_std: bool, eps: float
) -> Tensor:
    """Return minus the mean of its peers, divided by their unbiased std, [N, K]; 0 without a peer or if the
    std is at most eps.

    Args:
        peers: int64 [N, K, ...]: turns with equal entries are peers.
    """
    _, set_X = torch.unique(peers[turns.exists_NK], dim=0, return_inverse=True)
    centred_X = centre(return_NK[turns.exists_NK], set_X)
    if scale_by_std:
        std_X = group_std(centred_X, set_X)
        centred_X = torch.where(std_X > eps, centred_X / (std_X + eps), 0)
    return torch.zeros_like(return_NK).masked_scatter(turns.exists_NK, centred_X)
