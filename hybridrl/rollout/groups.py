"""The groups of an episode runner: what is asked for, what is in progress, and what comes back."""

import asyncio
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from hybridrl.batch import TokenBlock
from hybridrl.rollout.answers import packed
from hybridrl.rollout.base import Answer, Request
from hybridrl.rollout.streams import packed_episodes
from hybridrl.rollout.turns import Outcome
from hybridrl.seeds import sample_seed
from hybridrl.types import GroupTask, PolicyVersion, Sampling, Trajectory


@dataclass(frozen=True, slots=True)
class Ticket:
    """A submitted group. A task that is submitted again gets another number."""

    number: int
    task: GroupTask


@dataclass(frozen=True, slots=True)
class FinishedGroup:
    ticket: int
    """Number of the ticket."""

    trajectories: list[Trajectory]
    greedy: Trajectory | None
    failures: tuple[str, ...] = ()
    """What became of its episodes whose environments failed; they have no trajectory, unless all failed."""

    overdue: tuple[str, ...] = ()
    """What the programs of its episodes were doing that ended at their deadline."""


@dataclass(slots=True, eq=False)
class RunningEpisode:
    """An episode in progress."""

    name: str
    sampling: Sampling
    sample: int
    """Which sample of the group it is; its seeds depend on that."""

    task: asyncio.Task[None] | None = None
    inside: set[str] = field(default_factory=set)
    """Ids of its requests inside the engine: one at most, unless a program asks."""

    answer: Answer | None = None
    """Its answer, if there is no environment."""

    outcome: Outcome | None = None
    """What became of it, if there is an environment."""


@dataclass(slots=True, eq=False)
class OpenGroup:
    ticket: Ticket
    episodes: list[RunningEpisode]
    """One per sample, then the greedy one if there is one."""

    num_open: int = 0
    sampled_tokens: int = 0
    cancelled: bool = False
    evaluation: asyncio.Future[None] | None = None
    """Set once an evaluation's group has ended; None: the group trains."""


def episodes_of(ticket: Ticket) -> Iterator[RunningEpisode]:
    task = ticket.task
    one = replace(task.sampling, num_samples=1)
    for sample in range(task.sampling.num_samples):
        yield RunningEpisode(str(sample), one, sample)
    if task.greedy is not None:
        yield RunningEpisode("greedy", replace(task.greedy, num_samples=1), 0)


def world_seed(task: GroupTask) -> int:
    """Seed of the environment, the same for all samples of a prompt. A held-out prompt always has the same
    one."""
    if task.index < 0 or task.sampling.seed is None:
        return zlib.crc32(task.prompt.uid.encode())
    return task.sampling.seed


def limited(sampling: Sampling, most: int | None, stop_token_ids: tuple[int, ...]) -> Sampling:
    """The options of one turn: at most so many tokens, and further tokens that end it."""
    longest = sampling.max_response_tokens if most is None else min(most, sampling.max_response_tokens)
    stops = tuple(sorted({*sampling.stop_token_ids, *stop_token_ids}))
    return replace(sampling, max_response_tokens=longest, stop_token_ids=stops)


def request_of(
    ticket: Ticket, running: RunningEpisode, token_ids: Sequence[int], turn: int, sampling: Sampling
) -> Request:
    if sampling.seed is not None:
        sampling = replace(sampling, seed=sample_seed(sampling.seed, running.sample, turn))
    return Request(
        id=f"{ticket.number}/{running.name}/{turn}",
        token_ids=tuple(token_ids),
        sampling=sampling,
        arrays=ticket.task.prompt.arrays,
    )


def results(
    groups: Sequence[OpenGroup], version: PolicyVersion
) -> tuple[list[FinishedGroup], TokenBlock | None]:
    """What is known of the groups, and one block with the tokens of all of them.

    Args:
        version: version of trajectories without a sampled token.
    """
    if not groups:
        return [], None
    asked = [(group.ticket, running) for group in groups for running in group.episodes]
    outcomes = [running.outcome for _, running in asked if running.outcome is not None]
    if outcomes:
        played = [(running.sample, running.outcome.played) for _, running in asked if running.outcome]
        found, block = packed_episodes(played, version)
    else:
        answers = [running.answer for _, running in asked if running.answer is not None]
        singles, block = packed([ticket.task.prompt for ticket, _ in asked], answers)
        found = [[trajectory] for trajectory in singles]
    rows = iter(found)
    return [_finished(group, [next(rows) for _ in group.episodes]) for group in groups], block


def _finished(group: OpenGroup, found: Sequence[list[Trajectory]]) -> FinishedGroup:
    """
    Args:
        found: trajectories of each episode of the group.
    """
    number, count = group.ticket.number, group.ticket.task.sampling.num_samples
    if group.evaluation is not None:
        for running, members in zip(group.episodes, found, strict=True):
            members[0].reported = running.outcome.reported if running.outcome else {}
    greedy = found[count][0] if len(found) > count else None
    outcomes = [running.outcome for running in group.episodes if running.outcome]
    failures = tuple(outcome.failure for outcome in outcomes if outcome.failure)
    overdue = tuple(outcome.overdue for outcome in outcomes if outcome.overdue)
    held_out = group.evaluation is not None
    samples = [one for episode in found[:count] for one in episode if not (held_out and one.branch)]
    played = [one for one in samples if one.ended != "failed"]
    return FinishedGroup(number, played or samples[:1], greedy, failures, overdue)
