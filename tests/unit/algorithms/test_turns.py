"""Credit of single turns: rewards of turns add up to the episode's reward, and a turn is not paid for being
taken.

One state: half of the policy's answers end the episode, the other half go on and earn one more reward. Then
the advantage of going on, minus that of ending, must have the sign of this reward. Normalising the rewards of
each turn and adding them up would not: whoever goes on would be charged the mean of the later turns.
"""

import pytest
import torch

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import Advantage, OneRank, Tokens
from hybridrl.algorithms.columns import argument
from hybridrl.algorithms.shaping.relative_length import RelativeLength
from hybridrl.algorithms.turns import step_rewards
from hybridrl.config.schema import AlgorithmConfig

EPISODES = 64

ESTIMATORS = {
    "step_reinforce": {"name": "step_reinforce"},
    "step_reinforce over turns": {"name": "step_reinforce", "over": "turn"},
    "step_reinforce over the batch": {"name": "step_reinforce", "over": "batch"},
    "gigpo": {"name": "gigpo"},
    "gigpo, turns alone": {"name": "gigpo", "episode_weight": 0.0},
    "rae": {"name": "rae"},
    "hierarchical_grpo": {"name": "hierarchical_grpo"},
}


def columns(first, later):
    """Episodes of one token a turn: every second one has two turns. Each turn has a reward of its own."""
    seq, turn, reward = [], [], []
    for episode in range(EPISODES):
        for k, earned in enumerate((first, later)[: 1 + episode % 2]):
            seq.append(episode), turn.append(k), reward.append(earned)
    turn_T, reward_T = torch.tensor(turn), torch.tensor(reward)
    tokens = Tokens(torch.tensor(seq), torch.ones(len(seq), dtype=torch.bool), EPISODES)
    reward_N = torch.zeros(EPISODES).index_add(0, tokens.seq_T, reward_T)
    zero_N = torch.zeros(EPISODES, dtype=torch.int64)
    known = {
        "turn": turn_T,
        "anchor": turn_T + 1,
        "turn_reward": reward_T,
        "agent": zero_N,
        "episode": zero_N,
    }
    return reward_N, tokens, known


def pay_for_going_on(options, first, later):
    """Mean advantage of the first turn of episodes that go on, minus that of episodes that end."""
    reward_N, tokens, known = columns(first, later)
    made = load_estimator(AlgorithmConfig(estimator=options))
    arguments = {argument(name): known[name] for name in made.needs}
    if "turn" in made.needs:
        arguments |= {"tokens": tokens, "reduce": OneRank()}
    found = made(reward_N=reward_N, group_N=torch.zeros(EPISODES, dtype=torch.int64), **arguments)
    first_N = found.advantage_T[known["turn"] == 0] if isinstance(found, Advantage) else found
    goes_on = torch.arange(EPISODES) % 2 == 1
    return float(first_N[goes_on].mean() - first_N[~goes_on].mean())


@pytest.mark.parametrize("options", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("first", [0.0, 0.7])
@pytest.mark.parametrize("later", [0.5, -0.5])
def test_going_on_is_worth_what_it_earns(options, first, later):
    assert pay_for_going_on(options, first, later) * later > 0


@pytest.mark.parametrize("options", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("first", [0.0, 0.7])
def test_a_further_turn_that_earns_nothing_is_worth_nothing(options, first):
    if options["name"] == "rae":  # its baseline moves from trajectory to trajectory: no episode has a peer
        options = {**options, "decay": 0.0}
        assert abs(pay_for_going_on(options, first, 0.0)) <= first / (EPISODES / 2) + 1e-6
        return
    assert pay_for_going_on(options, first, 0.0) == pytest.approx(0.0, abs=1e-5)


def test_a_penalty_of_turns_is_never_pay_for_them():
    length_N = torch.ones(2, dtype=torch.int64)
    shaped_N = RelativeLength(turns=0.3)(
        torch.ones(2), torch.zeros(2, dtype=torch.int64), length_N, length_N, torch.tensor([1, 2])
    )
    assert shaped_N[0] > shaped_N[1]


def test_what_no_turn_earned_counts_for_the_last_one():
    tokens = Tokens(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1, 1, 1, 0, 1]).bool(), 3)
    turn_reward_T = torch.tensor([0.25, 0.5, 0.0, 7.0, 0.125])  # 7 is outside the mask
    found_T = step_rewards(torch.tensor([1.75, 0.125, 9.0]), turn_reward_T, tokens)
    assert found_T.tolist() == [0.25, 0.5, 1.0, 0.0, 0.125]


def test_rewards_of_turns_may_have_another_precision():
    tokens = Tokens(torch.tensor([0, 0]), torch.tensor([1, 1]).bool(), 1)
    found_T = step_rewards(torch.tensor([1.0]), torch.tensor([0.25, 0.5], dtype=torch.float64), tokens)
    assert found_T.tolist() == [0.25, 0.75] and found_T.dtype == torch.float32
