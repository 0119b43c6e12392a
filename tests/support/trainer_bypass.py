"""Optimizer steps with the correction bypass, on every rank."""

from pathlib import Path
from typing import Any

import trainer_values as values
from trainer_scenarios import Rendezvous, Shape, copy, dp_of, play, policy

from hybridrl.config.schema import AlgorithmConfig


def steps(rank: int, rendezvous: Rendezvous, folder: Path, shape: Shape) -> dict[bool, dict[str, Any]]:
    """Two optimizer steps with `bypass`, each on half of a batch; True: the whole batch is scored first."""
    from hybridrl.algorithms.needs import Needs

    dp, block, usual = dp_of(shape), values.make_block(), Needs.scores_first
    halves = [
        values.make_minibatch(i, [[list(range(6 * i + r, 6 * i + 6, dp))] for r in range(dp)], block)
        for i in range(2)
    ]
    algorithm = AlgorithmConfig.model_validate({"correction": ["bypass"], "loss": "clip_cov"})
    found = {}
    for scored in (False, True):
        Needs.scores_first = (lambda *_, **__: True) if scored else usual
        with policy(rank, rendezvous, folder, shape, algorithm=algorithm) as trained:
            found[scored] = play(trained, values.make_batch(halves)) | {"weights": copy(trained)}
    return found
