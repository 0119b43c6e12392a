"""Episodes of several turns: what the engine is asked, what becomes of the tokens, and what ends one."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from turn_values import END, Words, World, says

from hybridrl.environments.base import EnvironmentFailedError, ToolUse
from hybridrl.errors import DataError
from hybridrl.rollout.base import Answer
from hybridrl.rollout.streams import packed_episodes
from hybridrl.rollout.turns import TurnPlayer, inserted
from hybridrl.types import Prompt

PROMPT = Prompt("train/0", (1, 2), {"question": [1, 2]})


class Engine:
    """Answers turn k with `length` tokens 10 * (k + 1), ..., and END if there is room for it."""

    def __init__(self, length=2, version=5):
        self.asked, self.length, self.version = [], length, version

    async def __call__(self, token_ids, *, turn=0, most=None, stop_token_ids=()):
        self.asked.append((tuple(token_ids), turn, most, stop_token_ids))
        tokens = [*(10 * (turn + 1) + i for i in range(self.length)), END][:most]
        return Answer(
            id=str(turn),
            token_T=np.array(tokens, np.int32),
            logp_T=-np.arange(1, len(tokens) + 1, dtype=np.float32) - turn,
            version_T=np.full(len(tokens), self.version + turn, np.int32),
            finish="stop" if tokens[-1] == END else "length",
        )


def play(world, engine=None, *, context=100, prompt=PROMPT, marks=False):
    player = TurnPlayer(
        world,
        Words(),
        lambda row: [{"role": "user", "content": row["question"]}],
        max_context_tokens=context,
        marks_observations=marks,
    )
    engine = engine or Engine()
    return asyncio.run(player.play(prompt, 77, engine)), engine


def test_sampled_tokens_are_appended_as_they_are_and_only_they_are_trained_on():
    world = World([says(3), says(4, 5, reward=0.25), says(reward=1.0, done=True)])
    outcome, engine = play(world)
    assert [asked[0] for asked in engine.asked] == [(1, 2, 3), (1, 2, 3, 10, 11, END, 4, 5)]
    assert [asked[1:] for asked in engine.asked] == [(0, 97, (END,)), (1, 92, (END,))]
    ((trajectory,),), block = packed_episodes([(3, outcome.played)], 0)
    assert block.token_T.tolist() == [1, 2, 3, 10, 11, END, 4, 5, 20, 21, END]
    assert block.loss_mask_T.nonzero()[0].tolist() == [3, 4, 5, 8, 9, 10]
    assert block.trained("version").tolist() == [5, 5, 5, 6, 6, 6]
    assert block.trained("rollout_logp").tolist() == [-1, -2, -3, -2, -3, -4]
    assert block.trained("turn_reward").tolist() == [0, 0, 0.25, 0, 0, 1.0]
    assert block.trained("turn").tolist() == block.trained("anchor").tolist() == [0, 0, 0, 1, 1, 1]
    assert (trajectory.prompt_tokens, trajectory.response_tokens, trajectory.trained_tokens) == (3, 8, 6)
    assert (trajectory.turns, trajectory.turn_reward, trajectory.ended) == (2, 1.25, "done")
    assert (trajectory.version, trajectory.spans, trajectory.episode) == (5, ((5, 3), (6, 3)), 3)
    assert world.seeds == [77] and world.closed == 1 and world.said[0].text == f"10 11 {END}"


@pytest.mark.parametrize("marks", [True, False])
def test_what_an_environment_writes_between_two_answers_is_observed(marks):
    class Short(Engine):
        async def __call__(self, token_ids, *, turn=0, most=None, stop_token_ids=()):
            return await super().__call__(token_ids, turn=turn, most=2, stop_token_ids=stop_token_ids)

    # The prompt is not; nor is END, with which the chat format closes a truncated answer.
    outcome, _ = play(World([says(3), says(7, 8), says(9), says(done=True)]), Short(), marks=marks)
    _, block = packed_episodes([(0, outcome.played)], 0)
    assert block.token_T.tolist() == [1, 2, 3, 10, 11, END, 7, 8, 20, 21, END, 9, 30, 31]
    assert block.columns["observed"].nonzero()[0].tolist() == ([6, 7, 11] if marks else [])


def test_what_follows_the_last_answer_is_not_observed():
    outcome, _ = play(World([says(), says(*range(20))]), context=10, marks=True)
    _, block = packed_episodes([(0, outcome.played)], 0)
    assert outcome.played.ended == "overflow" and not block.columns["observed"].any()


@pytest.mark.parametrize(
    "before,after,expected",
    [
        ([1, 2, 9], [1, 2, 5, 6, 9], [2, 3]),
        ([1, 9], [1, 5, 9, 9], [1, 2]),
        ([], [5], [0]),
        ([1, 9], [1, 9], []),
        ([1, 2], [1, 2, 2], [2]),
    ],
)
def test_what_was_put_in_is_found(before, after, expected):
    assert list(inserted(before, after)) == expected


def test_a_truncated_answer_is_closed_and_the_closing_token_is_not_trained_on():
    class Short(Engine):
        async def __call__(self, token_ids, *, turn=0, most=None, stop_token_ids=()):
            return await super().__call__(token_ids, turn=turn, most=2, stop_token_ids=stop_token_ids)

    outcome, _ = play(World([says(), says(7), says(done=True)]), Short())
    _, block = packed_episodes([(0, outcome.played)], 0)
    assert block.token_T.tolist() == [1, 2, 10, 11, END, 7, 20, 21]
    assert block.loss_mask_T.nonzero()[0].tolist() == [2, 3, 6, 7]
    assert outcome.played.finish == "length"  # the last answer was truncated


@pytest.mark.parametrize(
    ("script", "context", "ended", "turns"),
    [
        ([says(), *[says(8)] * 4], 100, "max_turns", 4),
        ([says(), *[says(8)] * 4], 4, "max_tokens", 1),
        ([says(), says(*range(20))], 10, "overflow", 1),
        ([says(*range(20))], 10, "overflow", 0),
        ([says(), says(8, done=True)], 100, "done", 1),
        ([says(done=True)], 100, "done", 0),
    ],
)
def test_what_ends_an_episode(script, context, ended, turns):
    outcome, _ = play(World(script), context=context)
    ((trajectory,),), block = packed_episodes([(0, outcome.played)], 9)
    assert (trajectory.ended, trajectory.turns) == (ended, turns)
    assert trajectory.finish == ("stop" if ended == "done" else "length")
    assert len(block.token_T) <= context and not block.loss_mask_T[0]
    assert turns or (trajectory.version, trajectory.trained_tokens) == (9, 0)


def test_an_answer_that_fills_the_context_is_still_judged():
    outcome, engine = play(World([says(), says(8, reward=0.5)]), context=4)
    assert outcome.played.streams[0].turns[0].reward == 0.5 and len(engine.asked) == 1


def test_an_episode_whose_environment_fails_is_played_again_from_its_seeds():
    failed = EnvironmentFailedError("the process died")
    world = World([says(), says(4), failed], [failed], [says(3), says(done=True, reward=1.0)])
    outcome, engine = play(world)
    assert world.seeds == [77] * 3 and world.closed == 3
    assert [asked[1] for asked in engine.asked] == [0, 1, 0]
    assert outcome.lost_tokens == 6 and outcome.sums["episodes/retried"] == 2 and not outcome.failure
    assert outcome.played.ended == "done" and len(outcome.played.streams[0].turns) == 1


def test_an_environment_that_fails_three_times_leaves_nothing_to_train_on():
    failed = EnvironmentFailedError("step took longer than 30 s")
    outcome, _ = play(World(*[[says(), failed]] * 3))
    ((trajectory,),), block = packed_episodes([(0, outcome.played)], 4)
    assert (trajectory.ended, trajectory.finish, trajectory.trained_tokens) == ("failed", "abort", 0)
    assert "longer than 30 s" in outcome.failure and outcome.lost_tokens == 9 and len(block.token_T) == 1


def test_states_are_numbers_equal_for_equal_states():
    script = [says(anchor="door"), says(anchor="hall"), says(anchor="door"), says(done=True)]
    outcome, _ = play(World(script))
    first, second, third = (turn.anchor for turn in outcome.played.streams[0].turns)
    assert first == third != second


def test_every_role_has_a_stream_and_rewards_of_its_own():
    script = [
        says(3),
        says(4, agent=1, reward=0.25),
        says(5, agent=0, reward=0.5),
        says(done=True, reward=1.0, rewards={1: -1.0}),
    ]
    outcome, engine = play(World(script))
    (trajectories,), block = packed_episodes([(2, outcome.played)], 0)
    assert [(t.agent, t.episode, t.turns, t.turn_reward) for t in trajectories] == [
        (0, 2, 2, 1.25),
        (1, 2, 1, -0.5),
    ]
    assert [asked[0] for asked in engine.asked] == [(1, 2, 3), (1, 2, 4), (1, 2, 3, 10, 11, END, 5)]
    assert block.token_T[block.row(1)].tolist() == [1, 2, 4, 20, 21, END]
    assert block.columns["turn"].tolist() == [0, 1, 0]


def test_what_observations_report_is_added_up():
    uses = (ToolUse("search", 0.5), ToolUse("search", 1.5, "arguments"))
    done = says(done=True, metrics={"moves": 1.0, "solved": 0.0, "fined": -1.0})
    world = World([says(), says(metrics={"moves": 2.0}, uses=uses, reward=0.5), done])
    outcome, _ = play(world)
    assert outcome.sums == {
        "environment/world/episodes": 1,
        "environment/world/reward": 0.5,
        "environment/world/num_turns": 2,
        "environment/world/moves": 3.0,
        "environment/world/solved": 0.0,
        "environment/world/fined": -1.0,
        "tool/search/calls": 2,
        "tool/search/seconds": 2.0,
        "tool/search/errors": 1,
        "tool/search/arguments": 1,
    }


def test_an_opening_without_a_token_is_refused():
    with pytest.raises(DataError, match="begins without a token"):
        play(World([says()]), prompt=Prompt("train/0", (1,), {"question": []}))


def test_likeliest_tokens_stand_at_the_tokens_of_their_answers():
    class Telling(Engine):
        async def __call__(self, token_ids, *, turn=0, most=None, stop_token_ids=()):
            found = await super().__call__(token_ids, turn=turn, most=most, stop_token_ids=stop_token_ids)
            head_TK = found.token_T[:, None] + np.array([0, 1], np.int32)
            return replace(found, head_TK=(head_TK, -head_TK.astype(np.float32)))

    outcome, _ = play(World([says(), says(7), says(done=True)]), Telling())
    empty, _ = play(World([says(done=True)]), Telling())
    _, block = packed_episodes([(0, outcome.played), (1, empty.played)], 0)
    sampled = block.loss_mask_T
    head_TK, logp_TK = block.columns["engine_head"], block.columns["engine_head_logp"]
    assert (head_TK[sampled] == block.token_T[sampled][:, None] + [0, 1]).all()
    assert (logp_TK == -head_TK).all() and not head_TK[~sampled].any()


def test_experts_are_those_of_the_request_that_computed_them():
    class Routed(Engine):
        async def __call__(self, token_ids, *, turn=0, most=None, stop_token_ids=()):
            found = await super().__call__(token_ids, turn=turn, most=most, stop_token_ids=stop_token_ids)
            count = len(token_ids) + len(found.token_T) - 1
            experts = np.full((count, 1, 2), turn, np.int32)
            return Answer(
                id="a",
                token_T=found.token_T,
                logp_T=found.logp_T,
                version_T=found.version_T,
                finish=found.finish,
                experts_SLK=experts,
            )

    outcome, _ = play(World([says(), says(7), says(done=True)]), Routed())
    empty, _ = play(World([says(done=True)]), Routed())
    _, block = packed_episodes([(0, outcome.played), (1, empty.played)], 0)
    experts = block.columns["experts"][:, 0, 0].tolist()
    # The last token of an answer is run by the next request; nobody runs the last one of a trajectory.
    assert experts == [0, 0, 0, 0, 1, 1, 1, 1, 255, 255]
