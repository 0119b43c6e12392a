"""Answers that have no reward because a judge failed: they leave their groups, and too many end the run."""

from collections import Counter
from collections.abc import Iterable, Sequence

from hybridrl.errors import RewardError
from hybridrl.types import Group


def leave_out(groups: Sequence[Group]) -> int:
    """Take episodes without a reward out of their groups, where their failures are kept instead.

    All roles of an episode leave together, since baselines are over whole episodes. A group whose greedy
    answer has no reward has no baseline: all of its episodes leave.

    Returns:
        Sampled tokens of the trajectories that left.
    """
    lost = 0
    for group in groups:
        greedy = group.greedy.trajectories[0].unjudged if group.greedy is not None else ""
        numbered = list(zip(_episodes(group), group.trajectories, strict=True))
        why = {number: t.unjudged or greedy for number, t in numbered if t.unjudged or greedy}
        group.unjudged = tuple(why.values())
        lost += sum(t.sampled_tokens for number, t in numbered if number in why)
        group.trajectories = [t for number, t in numbered if number not in why]
    return lost


def num_episodes(groups: Iterable[Group]) -> int:
    """Episodes of groups; an answer without an environment is one."""
    return sum(len(set(_episodes(group))) for group in groups)


def _episodes(group: Group) -> list[int]:
    """The number of each trajectory's episode in its group."""
    return [number if t.ended is None else t.episode for number, t in enumerate(group.trajectories)]


def refuse_unjudged(failures: Sequence[str], *, judged: int, most: float, what: str) -> None:
    """
    Args:
        failures: why each answer without a reward has none.
        judged: number of the other answers.
        most: largest share without a reward, reward.max_unjudged.
        what: what the answers are of, as "step 3".

    Raises:
        RewardError: more are without a reward, or all are.
    """
    if failures and (not judged or len(failures) > most * (judged + len(failures))):
        raise RewardError(
            f"the judge gave no reward to {len(failures)} of {judged + len(failures)} answers of {what}, "
            f"reward.max_unjudged = {most:g}; the first: {failures[0]}",
            where="reward",
            fix="look at the judge; reward.max_unjudged says how many answers a run may lose",
        )


def unjudged_metrics(failures: Sequence[str]) -> dict[str, float]:
    """How many answers have no reward, in all and by kind of failure."""
    kinds = Counter(failure.partition(":")[0] for failure in failures)
    return {"reward/unjudged": float(len(failures))} | {
        f"reward/unjudged/{kind}": float(count) for kind, count in kinds.items()
    }
