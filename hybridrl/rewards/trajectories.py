"""Scores trajectories from their token columns."""

from collections.abc import Callable, Sequence

from hybridrl.batch import TokenBlock
from hybridrl.rewards.pool import Score, Scorer
from hybridrl.types import Prompt

Decode = Callable[[Sequence[Sequence[int]]], list[str]]
"""Turns the token ids of many answers into texts, without special tokens."""


def score_block(
    block: TokenBlock, rows: Sequence[int], prompts: Sequence[Prompt], decode: Decode, scorer: Scorer
) -> tuple[list[Score], list[str]]:
    """Scores and texts of some trajectories of a block.

    The text is what the policy wrote: tokens of tools and observations are left out, so echoing a tool
        earns nothing.

    Args:
        rows: numbers of the trajectories.
        prompts: the prompt of each.

    Raises: as Scorer.score.
    """
    texts = decode([answer_tokens(block, row) for row in rows])
    scores = scorer.score(texts, [prompt.row for prompt in prompts], [prompt.uid for prompt in prompts])
    return scores, texts


def answer_tokens(block: TokenBlock, row: int) -> list[int]:
    """The tokens of a trajectory that the policy generated."""
    where = block.row(row)
    return block.token_T[where][block.loss_mask_T[where]].tolist()
