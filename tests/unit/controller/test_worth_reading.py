"""Which trajectories of a step a person should read."""

import observe_values as values

from hybridrl.controller.worth_reading import worth_reading


def test_the_best_the_worst_and_the_longest() -> None:
    batch = values.batch(
        [[values.trajectory(0.0), values.trajectory(1.0)], [values.trajectory(0.5, tokens=9)]]
    )
    assert worth_reading(batch) == {1: ("best",), 0: ("worst",), 2: ("longest",)}


def test_one_may_be_worth_it_for_several_reasons() -> None:
    assert worth_reading(values.batch([[values.trajectory(1.0)]])) == {0: ("best", "worst", "longest")}


def test_of_equal_rewards_the_answer_to_the_harder_prompt_is_the_best() -> None:
    batch = values.batch([[values.trajectory(1.0), values.trajectory(1.0)], [values.trajectory(1.0)]])
    batch.advantage_N = batch.reward_N * [0.1, 0.1, 2.0]
    assert worth_reading(batch)[2] == ("best",)
