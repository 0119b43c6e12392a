"""Chooses the trajectories of a step that a person should read: the best, the worst and the longest.

The trainer adds those on which it disagrees with the engine.
"""

import numpy as np

from hybridrl.batch import Batch

NUM_SUSPICIOUS = 1


def worth_reading(batch: Batch) -> dict[int, tuple[str, ...]]:
    """Index of each trajectory -> why it is worth reading.

    Of equal rewards the larger advantage is the better answer, since it comes from the harder prompt.
    """
    found: dict[int, tuple[str, ...]] = {}
    advantage_N = batch.reward_N if batch.advantage_N is None else batch.advantage_N
    order = np.lexsort((advantage_N, batch.reward_N))
    for why, row in (("best", order[-1]), ("worst", order[0]), ("longest", batch.length_N.argmax())):
        found[int(row)] = (*found.get(int(row), ()), why)
    return found
