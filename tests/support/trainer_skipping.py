"""Optimizer steps that leave something out, on every rank: trajectories whose advantage is 0, or a whole step
whose loss is not finite."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import trainer_values as values
from trainer_scenarios import Rendezvous, Shape, copy, dp_of, play, policy, refusal, split

STILL = (1, 4, 5, 6, 10)


def steps(
    rank: int, rendezvous: Rendezvous, folder: Path, shape: Shape, still: tuple[int, ...] = STILL
) -> dict[bool, dict[str, Any]]:
    """Two batches, in which the trajectories of `still` have advantage 0; True: they are left out."""
    dp, block, found = dp_of(shape), values.make_block(), {}
    for skipped in (False, True):
        rows = [n for n in range(12) if not skipped or n not in still] or [0]
        whole = values.make_minibatch(0, [[list(range(r, 12, dp))] for r in range(dp)], block)
        part = values.make_minibatch(0, [[rows[r::dp]] for r in range(dp)], block)
        minibatch = replace(
            part,
            num_tokens=whole.num_tokens,
            num_sequences=whole.num_sequences,
            computed_tokens=part.num_tokens if skipped else None,
        )
        with policy(rank, rendezvous, folder, shape) as trained:
            played = [play(trained, _batch(minibatch, step, still)) for step in (1, 2)]
            found[skipped] = {"reports": [p["reports"][0] for p in played], "weights": copy(trained)}
    return found


def skips_not_finite(rank: int, rendezvous: Rendezvous, folder: Path, shape: Shape) -> dict[str, Any]:
    """Batches with an infinite advantage until the policy refuses, with a sound one in between."""
    sound = values.make_batch([split(0, dp_of(shape), (6,))])
    assert sound.advantage_N is not None
    infinite = replace(sound, advantage_N=np.full_like(sound.advantage_N, np.inf))
    actor = values.make_actor().model_copy(update={"non_finite": "skip"})
    with policy(rank, rendezvous, folder, shape, actor=actor) as trained:
        before = copy(trained)
        trained.load(infinite)
        report = trained.step(0)
        unchanged = all(np.array_equal(before[name], now) for name, now in copy(trained).items())
        after_skip = play(trained, sound)
        skipped = []
        for _ in range(6):
            trained.load(infinite)
            skipped.append(refusal(lambda: trained.step(0)))
    with policy(rank, rendezvous, folder, shape) as trained:
        alone = play(trained, sound)
    return {
        "unchanged": unchanged,
        "metrics": report.metrics,
        "warnings": report.warnings,
        "after_skip": after_skip,
        "alone": alone,
        "said": skipped,
    }


def _batch(minibatch: Any, step: int, still: tuple[int, ...]) -> Any:
    batch = values.make_batch([minibatch], step=step)
    assert batch.advantage_N is not None
    here = np.isin(np.arange(12), still)
    return replace(batch, advantage_N=np.where(here, 0, batch.advantage_N).astype(np.float32))
