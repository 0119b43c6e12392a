"""What an evaluation says of the answers to one source: how long they were, and what cut ones were worth."""

import pytest

from hybridrl.serve.evaluation import Evaluation, SetResult, answered
from hybridrl.serve.named import Named
from hybridrl.serve.results import as_dict, notes
from hybridrl.types import Finish, Group, Prompt, Trajectory


def evaluation(*ends: tuple[Finish, float, int]) -> Evaluation:
    """Of one prompt; (finish, reward, tokens) of each answer."""
    members = [Trajectory(i, 1, n, n, finish, 0, reward) for i, (finish, reward, n) in enumerate(ends)]
    group = Group(Prompt("heldout/0", (1,), {}, "sums"), members, "block")
    one = SetResult(
        name="sums",
        samples=len(ends),
        metrics={},
        sources=list(answered([group], [1], 0.0)),
        examples=[],
        seconds=1.0,
    )
    named = Named(kind="model", text="m", file="m", overrides=())
    return Evaluation(of=named, model="m", step=0, sets=[one], solved_above=0.0, temperature=1.0)


def test_the_reward_of_answers_that_were_cut_stands_beside_their_share() -> None:
    found = evaluation(("stop", 0.0, 2), ("length", 1.0, 4), ("length", 0.5, 4), ("stop", 1.0, 2))
    lines = dict(notes(found))
    assert lines["answers"].startswith(
        "sums: 3.0 tokens an answer, 50% cut at the limit (their mean reward is 0.750), "
    )
    source = as_dict(found)["sets"][0]["sources"][0]
    assert (source["truncated"], source["truncated_reward"]) == (0.5, pytest.approx(0.75))


def test_where_no_answer_was_cut_there_is_no_reward_of_such() -> None:
    found = evaluation(("stop", 0.0, 2))
    assert "2.0 tokens an answer, none cut at the limit, " in dict(notes(found))["answers"]
    assert as_dict(found)["sets"][0]["sources"][0]["truncated_reward"] is None
