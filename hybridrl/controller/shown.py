"""Which answers of a step are kept as text. The choice depends on the prompts alone: neither the order in
which answers come back nor the number of engines changes what a user reads."""

from collections.abc import Collection, Sequence

from hybridrl.config.schema import Config
from hybridrl.types import Group, Trajectory

_MORE = 4
"""So many times as many texts are kept as a step shows, because groups may be dropped before it."""


def kept_texts(cfg: Config, step: int) -> int:
    """How many answers of a step are kept as text for the user to read."""
    return cfg.run.samples_kept if step % cfg.run.sample_every == 0 or step == 1 else 0


def evenly(trajectories: Sequence[Trajectory], count: int) -> list[Trajectory]:
    """So many of them, or all."""
    count = min(count, len(trajectories))
    return [trajectories[i * len(trajectories) // count] for i in range(count)]


def of_groups(groups: Sequence[Group]) -> list[Trajectory]:
    """The trajectories that have a text of their own: no branches."""
    return [t for group in groups for t in group.trajectories if not t.branch]


def of_lot(groups: Sequence[Group], prompts_per_step: int, count: int) -> Collection[Trajectory]:
    """Some answers of a lot of groups that ended together.

    Args:
        count: how many a step of `prompts_per_step` groups shows.
    """
    if not count:
        return ()
    every, found = max(1, prompts_per_step // (_MORE * count)), []
    for group in groups:
        turn, rest = divmod(group.index, every)
        if not rest and (own := of_groups([group])):
            found.append(own[turn % len(own)])
    return found
