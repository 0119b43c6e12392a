"""Groups on the real engine: their tokens depend on seeds, and on nothing that happens beside them."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from engine_values import TOLERANCE, model, prompts, sampling, setup

from hybridrl.rollout.episodes import EpisodeRunner
from hybridrl.rollout.groups import Ticket
from hybridrl.rollout.sglang.start import SGLangEngine
from hybridrl.seeds import group_seed
from hybridrl.types import GroupTask

GROUPS, TOKENS = 6, 120

Answers = dict[tuple[int, int], tuple[list[int], np.ndarray]]
"""(index of the prompt, sample) -> tokens with the prompt, and log-probabilities."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model(1, max_position_embeddings=512).save_pretrained(folder)
    engine = SGLangEngine(setup(folder, max_response_tokens=TOKENS))
    yield engine
    engine.shutdown()


def tasks() -> list[GroupTask]:
    options = {"num_samples": 3, "max_response_tokens": TOKENS, "temperature": 2.0}
    return [
        GroupTask(index=i, prompt=prompt, sampling=sampling(**options, seed=group_seed(7, i)))
        for i, prompt in enumerate(prompts(GROUPS, length=70))
    ]


async def finished(runner: EpisodeRunner, chosen: Sequence[Ticket]) -> Answers:
    index_of, found = {ticket.number: ticket.task.index for ticket in chosen}, {}
    while len(found) < 3 * len(chosen):
        groups, block = await runner.finished()
        assert block is not None
        for group in groups:
            for sample, trajectory in enumerate(group.trajectories):
                row = block.row(trajectory.row)
                logp = block.columns["rollout_logp"][row]
                found[index_of[group.ticket], sample] = block.token_T[row].tolist(), logp
    return found


async def all_at_once(engine: SGLangEngine) -> Answers:
    runner, chosen = EpisodeRunner(engine), [Ticket(task.index, task) for task in tasks()]
    runner.submit(chosen)
    return await finished(runner, chosen)


async def interrupted(engine: SGLangEngine) -> Answers:
    """In another order, two at a time, with a pause, and with groups that are ended and submitted again."""
    runner, chosen = EpisodeRunner(engine, most_requests=2), [Ticket(t.index, t) for t in tasks()[::-1]]
    runner.submit(chosen)
    await asyncio.sleep(0.2)
    await runner.cancel([GROUPS - 1, 2])
    await runner.pause()
    again = [Ticket(GROUPS + task.index, task) for task in tasks() if task.index in (GROUPS - 1, 2)]
    runner.submit(again)
    await runner.go_on()
    left = [ticket for ticket in chosen if ticket.number not in (GROUPS - 1, 2)]
    return await finished(runner, [*left, *again])


def test_tokens_depend_on_seeds_only(engine):
    first, second = asyncio.run(all_at_once(engine)), asyncio.run(interrupted(engine))
    assert first.keys() == second.keys() and len({tuple(tokens) for tokens, _ in first.values()}) > GROUPS
    for name, (tokens, logp) in first.items():
        assert second[name][0] == tokens, name
        assert np.abs(second[name][1] - logp).max() < TOLERANCE


def test_the_same_requests_together_are_the_same_to_the_bit(engine):
    first, second = asyncio.run(all_at_once(engine)), asyncio.run(all_at_once(engine))
    assert all((first[name][1] == second[name][1]).all() for name in first)
