"""Scores trajectories from their token columns."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from hybridrl.batch import TokenBlock
from hybridrl.columns import TURN_START
from hybridrl.rewards.score import Score
from hybridrl.types import ENVIRONMENT_PART, Trajectory

Decode = Callable[[Sequence[Sequence[int]]], list[str]]
"""Turns the token ids of many answers into texts, without special tokens."""

Sees = Literal["last_turn", "all_turns", "transcript"]
"""Values of reward.sees."""


def seen_texts(block: TokenBlock, rows: Sequence[int], decode: Decode, sees: Sees = "last_turn") -> list[str]:
    """What the reward is shown of some trajectories of a block.

    Args:
        rows: numbers of the trajectories.
        sees: which part of an episode of several turns is scored.
    """
    return decode([seen_tokens(block, row, sees) for row in rows])


def with_turns(trajectory: Trajectory, score: Score) -> tuple[float, dict[str, float]]:
    """The reward of a trajectory and its parts: its score, and what the environment gave its turns."""
    if trajectory.ended is None:
        return score.reward, score.parts
    earned = trajectory.turn_reward
    return score.reward + earned, {**score.parts, ENVIRONMENT_PART: earned}


def share_outcomes(trajectories: Sequence[Trajectory]) -> None:
    """Give the branches of an episode the reward of the one that has its last answer.

    Args:
        trajectories: those of one group.
    """
    main = {(t.episode, t.agent): t for t in trajectories if not t.branch}
    for branch in trajectories:
        if branch.branch:
            own = main[branch.episode, branch.agent]
            branch.reward, branch.reward_parts, branch.unjudged = own.reward, own.reward_parts, own.unjudged


def seen_tokens(block: TokenBlock, row: int, sees: Sees) -> list[int]:
    """The tokens of a trajectory that the reward is shown.

    Except in a transcript, these are what the policy wrote: tokens of tools and observations are left out, so
    echoing a tool earns nothing.
    """
    where = block.row(row)
    first = where.start
    if sees == "transcript":
        return block.token_T[first + int(block.prompt_tokens_N[row]) : where.stop].tolist()
    if sees == "last_turn" and len(starts := _turn_starts(block, row)):
        first = int(starts[-1])
    here = slice(first, where.stop)
    return block.token_T[here][block.loss_mask_T[here]].tolist()


def transcript(block: TokenBlock, row: int, decode: Decode) -> tuple[tuple[str, str], ...]:
    """The turns of an episode, and what the policy read between them: (who, text), with who = turn 1, read,
    turn 2, ... Empty for a single answer."""
    pieces = list(_pieces(block, row))
    return tuple(zip((who for who, _ in pieces), decode([ids for _, ids in pieces]), strict=True))


def _pieces(block: TokenBlock, row: int) -> Iterator[tuple[str, list[int]]]:
    edges = [*_turn_starts(block, row).tolist(), block.row(row).stop]
    for number, (start, following) in enumerate(itertools.pairwise(edges), 1):
        tokens, mask = block.token_T[start:following], block.loss_mask_T[start:following]
        yield f"turn {number}", tokens[mask].tolist()
        if not mask.all():
            yield "read", tokens[~mask].tolist()


def _turn_starts(block: TokenBlock, row: int) -> np.ndarray:
    """Indices in the block of the first tokens of a trajectory's turns; empty for a single answer."""
    where, start = block.row(row), block.columns.get(TURN_START, np.zeros(0, np.int64))
    return start[(start >= where.start) & (start < where.stop)]
