"""Episodes of several turns on an engine with an oracle: every trained token has the probability that its
weights give it after everything that its stream has before it."""

import asyncio

import numpy as np
import pytest
from tiny_engine.models import logp_of

from hybridrl.config.rollout import EngineParallel
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.dialogue.template import TemplateDialogue
from hybridrl.environments.base import EnvironmentFailedError, EnvironmentUsage, Observation
from hybridrl.models.tiny import random_model
from hybridrl.rollout.base import EngineSetup, kind_of
from hybridrl.rollout.episodes import EpisodeRunner
from hybridrl.rollout.groups import Ticket
from hybridrl.rollout.turns import TurnPlayer
from hybridrl.types import GroupTask, Prompt, Sampling

TURNS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    random_model(folder, "qwen3", 0)
    return folder


@pytest.fixture
def engine(folder):
    given = {"max_prompt_tokens": 90, "max_response_tokens": 10, "log_path": ""}
    return kind_of("tiny_engine:Tiny").open(
        EngineSetup(model_folder=str(folder), parallel=EngineParallel(), **given)
    )


class Echo:
    """An environment that says how long each answer was."""

    def name(self, row):
        return "echo"

    def tools(self, row):
        return ()

    def max_turns(self, row):
        return TURNS

    def usage(self):
        return EnvironmentUsage()

    async def start(self):
        return None

    def open(self, row):
        return self

    async def reset(self, seed):
        return Observation("go")

    async def step(self, turn):
        return Observation(str(len(turn.text)), reward=0.5)

    async def close(self):
        return None


def runner_on(engine, folder, environments=None):
    dialogue = TemplateDialogue(load_tokenizer(str(folder)))
    player = TurnPlayer(
        environments or Echo(),
        dialogue,
        lambda row: [{"role": "user", "content": row["q"]}],
        max_context_tokens=100,
    )
    return EpisodeRunner(engine, player=player)


def ticket(number, samples=2):
    sampling = Sampling(num_samples=samples, max_response_tokens=10, seed=number)
    prompt = Prompt(f"train/{number}", (1, 2), {"q": f"question {number}"})
    return Ticket(number, GroupTask(index=number, prompt=prompt, sampling=sampling))


async def played(runner, *numbers, meanwhile=None):
    runner.submit([ticket(number) for number in numbers])
    task = asyncio.create_task(meanwhile()) if meanwhile else None
    groups, blocks = {}, {}
    while True:
        found, block = await runner.finished()
        if not found:
            break
        for group in found:
            groups[group.ticket], blocks[group.ticket] = group, block
    if task:
        await task
    return groups, blocks


def rows_of(groups, blocks, number):
    block = blocks[number]
    return [block.row(t.row) for t in groups[number].trajectories]


def test_engine_and_weights_agree_on_every_trained_token(engine, folder):
    groups, blocks = asyncio.run(played(runner_on(engine, folder), 0, 1))
    for number in (0, 1):
        block = blocks[number]
        for trajectory, row in zip(groups[number].trajectories, rows_of(groups, blocks, number), strict=True):
            mask = block.loss_mask_T[row]
            expected = logp_of(engine.parameters, block.token_T[row].tolist())
            assert np.abs(block.columns["rollout_logp"][row] - expected)[mask].max() < 2e-5
            assert (trajectory.turns, trajectory.turn_reward) == (TURNS, 0.5 * TURNS)
            assert len(np.unique(block.columns["turn"])) == TURNS and mask.sum() == trajectory.trained_tokens


def test_an_episode_that_is_paused_and_goes_on_has_the_tokens_of_the_whole_one(engine, folder):
    whole, blocks = asyncio.run(played(runner_on(engine, folder), 5))
    runner = runner_on(engine, folder)

    async def pauses():
        for _ in range(4):
            for _ in range(5):
                await asyncio.sleep(0)
            await runner.pause()
            await asyncio.sleep(0)
            await runner.go_on()

    again, others = asyncio.run(played(runner, 5, meanwhile=pauses))
    for one, other in zip(rows_of(whole, blocks, 5), rows_of(again, others, 5), strict=True):
        assert blocks[5].token_T[one].tolist() == others[5].token_T[other].tolist()
        assert blocks[5].columns["rollout_logp"][one].tolist() == (
            others[5].columns["rollout_logp"][other].tolist()
        )


def test_a_group_that_is_cancelled_and_submitted_again_has_the_same_tokens(engine, folder):
    whole, blocks = asyncio.run(played(runner_on(engine, folder), 3))
    runner = runner_on(engine, folder)

    async def scenario():
        runner.submit([ticket(3)])
        for _ in range(12):
            await asyncio.sleep(0)
        await runner.cancel([3])
        assert runner.usage().aborted_tokens > 0
        return await played(runner, 3)

    again, others = asyncio.run(scenario())
    assert [blocks[3].token_T[row].tolist() for row in rows_of(whole, blocks, 3)] == [
        others[3].token_T[row].tolist() for row in rows_of(again, others, 3)
    ]


def test_an_evaluation_plays_whole_episodes_which_training_does_not_see(engine, folder):
    runner = runner_on(engine, folder)
    prompts = [Prompt(f"heldout/{i}", (1, 2), {"q": f"question {i}"}) for i in range(3)]
    sampling = Sampling(num_samples=2, max_response_tokens=10, temperature=0.0, seed=1)

    async def scenario():
        training = asyncio.create_task(played(runner, 0))
        found, block = await runner.play(prompts, sampling)
        return found, block, await training, runner.usage()

    found, block, (groups, _), usage = asyncio.run(scenario())
    assert [len(members) for members in found] == [2, 2, 2] and len(block) == 6
    assert all(t.turns == TURNS and t.ended == "max_turns" for members in found for t in members)
    assert list(groups) == [0]
    assert usage.sampled_tokens == sum(t.trained_tokens for t in groups[0].trajectories)


def test_a_fault_of_the_project_reaches_the_one_who_waits(engine, folder):
    class Broken(Echo):
        async def step(self, turn):
            raise KeyError("oh")

    runner = runner_on(engine, folder, Broken())
    with pytest.raises(KeyError, match="oh"):
        asyncio.run(played(runner, 0))
    with pytest.raises(KeyError, match="oh"):
        asyncio.run(runner.play([Prompt("heldout/0", (1,), {"q": "x"})], ticket(0).task.sampling))


def test_an_evaluation_whose_environments_fail_ends_the_run(engine, folder):
    class Dead(Echo):
        async def reset(self, seed):
            raise EnvironmentFailedError("the process died")

    prompts = [Prompt(f"heldout/{i}", (1,), {"q": "x"}) for i in range(2)]
    with pytest.raises(EnvironmentFailedError, match="4 of 4 episodes of an evaluation.*the process died"):
        asyncio.run(runner_on(engine, folder, Dead()).play(prompts, ticket(0).task.sampling))


def test_an_episode_that_failed_leaves_its_group(engine, folder):
    class DiesOnce(Echo):
        def __init__(self):
            self.left = 3

        async def reset(self, seed):
            self.left -= 1
            if self.left >= 0:
                raise EnvironmentFailedError("the process died")
            return Observation("go")

    groups, blocks = asyncio.run(played(runner_on(engine, folder, DiesOnce()), 0, 1))
    members = [t for group in groups.values() for t in group.trajectories]
    failures = [failure for group in groups.values() for failure in group.failures]
    assert len(members) + len(failures) == 4 and all(t.ended == "max_turns" for t in members)
    assert all("the process died" in failure for failure in failures) and len(failures) <= 1
