"""Which sequences a microbatch consists of: whole trajectories, or each prompt once and its answers after it.

Shape letters: S trajectories of a microbatch, G sequences that they are packed as.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hybridrl.trainer.places import SharedPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """int64 arrays, one element per sequence but for order_S; those of shared prompts come first."""

    order_S: np.ndarray
    """Number of each trajectory among those given, in the order in which they are packed."""

    trajectory_G: np.ndarray
    """The trajectory whose tokens a sequence has; of a shared prompt, one of its answers."""

    seq_G: np.ndarray
    """Number of that trajectory in the order of packing."""

    start_G: np.ndarray
    """Index of the sequence's first token in the block."""

    skip_G: np.ndarray
    """Position of that token in its trajectory."""

    length_G: np.ndarray
    shared: tuple[SharedPrompt, ...] = ()


def alone(index: np.ndarray, start_S: np.ndarray, length_S: np.ndarray) -> Sequences:
    """Every trajectory is a sequence; in order of length, so that equal ones are neighbours.

    Args:
        index: trajectories.
        start_S, length_S: index of the first token of each in its block, and tokens that are packed.
    """
    order = np.argsort(length_S, kind="stable")
    return Sequences(
        order_S=order,
        trajectory_G=index[order],
        seq_G=np.arange(len(index)),
        start_G=start_S[order],
        skip_G=np.zeros_like(order),
        length_G=length_S[order],
    )


def sharing(
    index: np.ndarray,
    start_S: np.ndarray,
    length_S: np.ndarray,
    prompts: Sequence[np.ndarray],
    first_S: np.ndarray,
    kinds: Sequence[bytes] | None = None,
) -> Sequences:
    """Prompts of two tokens or more that several trajectories have are sequences of their own, each followed
    by its answers in order of length. All other trajectories are whole, after them.

    Args:
        prompts: token ids of the prompt of each trajectory.
        first_S: index of the first token of each among the tokens of all blocks; the other arguments are
            those of alone().
        kinds: equal for trajectories that may share a prompt; None: all may.
    """
    groups: dict[tuple[bytes, bytes], list[int]] = defaultdict(list)
    for s, prompt in enumerate(prompts):
        groups[prompt.tobytes(), kinds[s] if kinds else b""].append(s)
    several = [group for group in groups.values() if len(group) > 1 and len(prompts[group[0]]) > 1]
    several = [sorted(group, key=lambda s: int(length_S[s])) for group in several]
    rest = alone(index, start_S, length_S)
    inside = {s for group in several for s in group}
    whole = [s for s in rest.order_S.tolist() if s not in inside]
    order = [s for group in several for s in group] + whole
    number = {s: i for i, s in enumerate(order)}
    # One row per sequence: its trajectory, the tokens of it that are left out in front, and its tokens
    rows: list[tuple[int, int, int]] = []
    for group in several:
        shared = len(prompts[group[0]]) - 1
        rows += [(group[0], 0, shared), *((s, shared, int(length_S[s]) - shared) for s in group)]
    rows += [(s, 0, int(length_S[s])) for s in whole]
    of_G, skip_G, length_G = np.array(rows, np.int64).T
    return Sequences(
        order_S=np.array(order, np.int64),
        trajectory_G=index[of_G],
        seq_G=np.array([number[s] for s in of_G.tolist()], np.int64),
        start_G=start_S[of_G] + skip_G,
        skip_G=skip_G,
        length_G=length_G,
        shared=tuple(
            _shared(len(prompts[group[0]]) - 1, length_S[list(group)], first_S[list(group)])
            for group in several
        ),
    )


def _shared(prompt: int, length_A: np.ndarray, first_A: np.ndarray) -> SharedPrompt:
    """The shared prompt of A trajectories of these lengths, in ascending order, prompt included."""
    lengths, counts = np.unique(length_A - prompt, return_counts=True)
    return SharedPrompt(
        prompt, tuple(zip(counts.tolist(), lengths.tolist(), strict=True)), tuple(first_A.tolist())
    )
