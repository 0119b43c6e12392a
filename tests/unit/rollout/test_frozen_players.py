"""Episodes of which a frozen model plays a role: it answers there, and nothing that it says is trained on."""

import asyncio

import numpy as np
from turn_values import END, Words, World, says

from hybridrl.environments.base import EnvironmentFailedError
from hybridrl.rollout.base import Answer
from hybridrl.rollout.streams import packed_episodes
from hybridrl.rollout.turns import FrozenPlayer, TurnPlayer
from hybridrl.types import Prompt

PROMPT = Prompt("train/0", (1, 2), {"question": [1, 2]})


class Model:
    """Answers with a token of its own and END; the list has what it was asked."""

    def __init__(self, token, *failures):
        self.token, self.asked, self.failures = token, [], list(failures)

    async def __call__(self, token_ids, *, turn=0, most=None, stop_token_ids=()):
        self.asked.append((tuple(token_ids), turn, stop_token_ids))
        if self.failures:
            raise self.failures.pop(0)
        return Answer(
            id="a",
            token_T=np.array([self.token, END], np.int32),
            logp_T=np.zeros(2, np.float32),
            version_T=np.zeros(2, np.int32),
            finish="stop",
        )


class Other(Words):
    """The frozen model's own chat format: it begins with a 50."""

    stop_token_ids = (END, 98)

    def begin(self, messages, tools):
        return [50, *super().begin(messages, tools)]


def play(*scripts, frozen=None, seed=77):
    policy, frozen = Model(10), frozen or Model(20)
    player = TurnPlayer(
        World(*scripts),
        Words(),
        lambda row: [{"role": "user", "content": row["question"]}],
        max_context_tokens=100,
        frozen={1: FrozenPlayer(Other(), frozen)},
    )
    return asyncio.run(player.play(PROMPT, seed, policy)), policy, frozen


def duel():
    """The policy is agent 0 and moves first and third; then agent 0 has won."""
    return [
        says(3, agent=0),
        says(4, agent=1),
        says(5, agent=0),
        says(reward=1.0, done=True),
    ]


def test_the_frozen_model_answers_in_its_own_format_and_is_not_trained_on():
    outcome, policy, frozen = play(duel())
    assert [asked[0] for asked in policy.asked] == [(1, 2, 3), (1, 2, 3, 10, END, 5)]
    assert [(asked[0], asked[2]) for asked in frozen.asked] == [((50, 1, 2, 4), (END, 98))]
    ((trajectory,),), block = packed_episodes([(0, outcome.played)], 0)
    assert trajectory.agent == 0 and trajectory.turns == 2 and trajectory.turn_reward == 1.0
    assert block.token_T.tolist() == [1, 2, 3, 10, END, 5, 10, END]
    assert block.loss_mask_T.nonzero()[0].tolist() == [3, 4, 6, 7]
    assert outcome.sums["environment/world/num_turns"] == 2


def test_what_the_frozen_model_ends_pays_the_policy():
    script = [says(3, agent=0), says(4, agent=1), says(reward=2.0, rewards={0: -2.0}, done=True)]
    outcome, _, _ = play(script)
    assert [turn.reward for turn in outcome.played.streams[0].turns] == [-2.0]
    assert outcome.sums["environment/world/reward"] == -2.0


def test_the_seed_of_its_answer_follows_from_the_world_and_not_from_the_sample():
    seeds = [play(duel(), seed=seed)[2].asked[0][1] for seed in (77, 77, 78)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_an_episode_without_a_turn_of_the_policy_has_nothing_to_train_on():
    outcome, policy, _ = play([says(4, agent=1), says(reward=1.0, done=True)])
    _, block = packed_episodes([(0, outcome.played)], 0)
    assert not policy.asked and not block.loss_mask_T.any() and outcome.played.ended == "done"


def test_a_frozen_player_that_fails_is_a_failure_of_the_world():
    frozen = Model(20, EnvironmentFailedError("the frozen player failed", where="frozen"))
    outcome, policy, _ = play(duel(), duel(), frozen=frozen)
    assert outcome.failure == "" and outcome.sums["episodes/retried"] == 1
    assert outcome.lost_tokens == 2 and len(policy.asked) == 3  # its first answer was lost
