"""What benchmarks of optimizer steps share: random trajectories, and the batch that ranks are given."""

from collections.abc import Collection, Sequence

import numpy as np

from hybridrl.batch import Minibatch, RankBatch, TokenBlock


def chosen(names: str, known: Collection[str]) -> list[str]:
    """The shapes that --shapes names, separated by commas; ends the program at one that is not known."""
    found = names.split(",")
    if unknown := set(found) - set(known):
        raise SystemExit(f"--shapes {','.join(sorted(unknown))}: they are of {', '.join(known)}")
    return found


def random_trajectories(
    count: int, *, vocab_size: int, prompt: int, answers: tuple[int, int], samples: int = 1
) -> tuple[TokenBlock, np.ndarray]:
    """Trajectories of random tokens, the same at every call, and an advantage for each, float32 [N].

    Args:
        prompt: tokens of a prompt.
        answers: tokens of an answer, from the shortest to one more than the longest.
        samples: trajectories in a row that have the same prompt.
    """
    draw = np.random.default_rng(0)
    prompts = np.repeat(draw.integers(0, vocab_size, (-(-count // samples), prompt)), samples, 0).tolist()
    prompts = prompts[:count]
    found = [draw.integers(0, vocab_size, draw.integers(*answers)).tolist() for _ in range(count)]
    block = TokenBlock.from_answers(prompts, found, [[-1.0] * len(answer) for answer in found], version=0)
    return block, draw.normal(size=count).astype(np.float32)


def rank_batch(block: TokenBlock, advantage_N: np.ndarray, minibatches: Sequence[Minibatch]) -> RankBatch:
    """A batch of all trajectories of a block, whose rewards are their advantages."""
    count, zero_N = len(block), np.zeros(len(block), np.int64)
    return RankBatch(
        1, (block,), zero_N, np.arange(count), zero_N, advantage_N, advantage_N, tuple(minibatches)
    )
