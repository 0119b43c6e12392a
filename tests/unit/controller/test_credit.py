"""From scores to advantages: shaping, estimator, what is dropped, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hybridrl.algorithms.advantages import WithTokenRewards
from hybridrl.algorithms.base import Advantage, OneRank, Tokens
from hybridrl.algorithms.rules import credit_errors
from hybridrl.batch import Batch, TokenBlock
from hybridrl.columns import COLUMNS, ColumnSpec, given_by
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.controller.advantage import CONTROLLER_COLUMNS, load_credit
from hybridrl.data.packing import pack_minibatches
from hybridrl.errors import ConfigError, DataError, GuardError
from hybridrl.types import Group, Prompt, Trajectory


def batch_of(rewards, *, lengths=None, greedy=None, uids=None, cut=()) -> Batch:
    """Groups of answers; `rewards[g][i]` is of answer i to prompt g, `cut` holds (g, i)."""
    groups = []
    for g, row in enumerate(rewards):
        sizes = lengths[g] if lengths else [2] * len(row)
        block = TokenBlock.from_answers(
            [(1,)] * len(row), [(5,) * n for n in sizes], [(-1.0,) * n for n in sizes], 0
        )
        answers = [
            Trajectory(i, 1, n, n, "length" if (g, i) in cut else "stop", 0, float(reward), {"part": reward})
            for i, (reward, n) in enumerate(zip(row, sizes, strict=True))
        ]
        uid = uids[g] if uids else f"train/{g}"
        groups.append(Group(Prompt(uid, (1,), {}), answers, block, greedy[g] if greedy else None))
    return Batch.pack(3, groups)


def credit(**algorithm):
    return load_credit(AlgorithmConfig.model_validate(algorithm))


def test_grpo_centres_each_group() -> None:
    batch = batch_of([[0, 1], [2, 2]])
    assert credit()(batch) == []
    half = 0.5**0.5
    assert batch.advantage_N == pytest.approx([-half, half, 0, 0], rel=1e-5)


class ByPicture:
    """An estimator that needs nothing but a column per prompt."""

    needs = frozenset({"picture"})

    def __call__(self, reward_N, group_N, *, tokens, reduce, picture_NP) -> Advantage:
        return Advantage(torch.tensor([len(one) for one in picture_NP], dtype=torch.float32)[tokens.seq_T])


def test_an_estimator_of_prompts_alone_runs_where_the_prompts_are(monkeypatch) -> None:
    monkeypatch.setitem(COLUMNS, "picture", ColumnSpec("prompt", "float32", "block", "asked about", axes="P"))
    batch, estimator = batch_of([[0, 1], [2, 2]]), ByPicture()
    assert replace(credit(), estimator=estimator)(batch) == []
    assert batch.advantage_N is None and batch.scalars == {}
    assert [*credit_errors(AlgorithmConfig(), estimator.needs, frozenset())] == []
    made = WithTokenRewards(estimator, None, 0.0)(
        torch.zeros(2),
        torch.tensor([0, 1]),
        Tokens(torch.tensor([0, 1, 1]), torch.ones(3, dtype=torch.bool), 2),
        OneRank(),
        old_logp_T=torch.zeros(3),
        picture_NP=[np.zeros(3), np.zeros(4)],
    )
    assert made.advantage_T.tolist() == [3, 4, 4]


def with_parts(batch: Batch, *parts: dict[str, float]) -> Batch:
    for trajectory, own in zip((t for group in batch.groups for t in group.trajectories), parts, strict=True):
        trajectory.reward_parts = own
    return batch


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({}, "it has 0; its parts are none: it is a number alone"),
        ({"right": 1.0}, "it has 1; its parts are right"),
        ({"timeout": 1.0}, "it has 0; its parts are none"),
    ],
)
def test_gdpo_without_parts_to_weigh_stops_at_the_first_batch(parts: dict[str, float], said: str) -> None:
    batch = with_parts(batch_of([[0, 1]]), parts, parts)
    with pytest.raises(ConfigError, match=said) as refused:
        credit(estimator="gdpo")(batch)
    assert refused.value.where == "algorithm.estimator"


def test_gdpo_asks_for_a_weight_for_each_part() -> None:
    three = credit(estimator={"name": "gdpo", "weights": [1.0, 1.0, 1.0]})
    with pytest.raises(ConfigError, match="3 weights for 2 parts of the reward; its parts are form, right"):
        three.check_parts(["form", "right"])
    in_reward = {"coefficient": 0.1, "in": "reward"}
    with pytest.raises(ConfigError, match="it has 1"):
        credit(estimator="gdpo", kl=in_reward).check_parts(["right"])


def test_an_answer_that_was_not_judged_in_time_adds_no_part_to_the_others() -> None:
    judged = {"form": 1.0, "right": 0.0}, {"form": 0.0, "right": 1.0}, {"form": 1.0, "right": 1.0}
    credit(estimator="gdpo")(hung := with_parts(batch_of([[0, 1], [1, 0]]), *judged, {"timeout": 1.0}))
    credit(estimator="gdpo")(
        none := with_parts(batch_of([[0, 1], [1, 0]]), *judged, {"form": 0.0, "right": 0.0})
    )
    assert hung.advantage_N is not None and np.array_equal(hung.advantage_N, none.advantage_N)


def test_remax_subtracts_the_greedy_reward() -> None:
    batch = batch_of([[0, 1], [1, 1]], greedy=[0.25, 1.0])
    credit(estimator="remax")(batch)
    assert batch.advantage_N.tolist() == [-0.25, 0.75, 0.0, 0.0]


def test_a_star_po_reads_the_soft_value_beside_the_prompt() -> None:
    batch = batch_of([[0, 1], [1, 1]])
    for group, value in zip(batch.groups, (0.25, 1.0), strict=True):
        group.prompt = replace(group.prompt, row={"v_star": value})
    credit(estimator="a_star_po")(batch)
    assert batch.advantage_N.tolist() == [-0.25, 0.75, 0.0, 0.0]
    with pytest.raises(DataError, match="prompt train/0 has no field v_star"):
        credit(estimator="a_star_po")(batch_of([[0, 1]]))


def test_shaping_changes_what_the_estimator_sees_and_keeps_the_score() -> None:
    batch = batch_of([[0, 1], [1, 0]], lengths=[[8, 8], [6, 6]])
    shaping = [
        {"name": "overlong", "limit": 8, "margin": 4, "penalty": 0.5},
        {"name": "affine", "scale": 2.0},
    ]
    credit(shaping=shaping)(batch)
    assert batch.score_N.tolist() == [0, 1, 1, 0]
    assert batch.reward_N.tolist() == [-1.0, 1.0, 1.5, -0.5]


def test_what_shaping_remembers_goes_through_a_checkpoint() -> None:
    first, second = [[0, 4], [1, 3]], [[2, 2], [9, 0]]
    whole, before, after = (credit(shaping=["running_norm"]) for _ in range(3))
    expected = batch_of(second)
    whole(batch_of(first))
    whole(expected)
    before(batch_of(first))
    after.load_state_dict(before.state_dict())
    resumed = batch_of(second)
    after(resumed)
    assert resumed.reward_N.tolist() == expected.reward_N.tolist()
    assert before.state_dict() != credit(shaping=["running_norm"]).state_dict()


def test_cut_answers_count_in_the_baseline_and_are_in_no_minibatch() -> None:
    batch = batch_of([[0, 1], [0, 1], [0, 1]], cut={(0, 1), (1, 0), (1, 1)})
    credit(drop_truncated=True)(batch)
    assert batch.advantage_N[0] < 0  # though it is the only one left of its group
    plan = pack_minibatches(batch, minibatch_prompts=3, epochs=2, num_ranks=1, microbatch_tokens=100, seed=0)
    assert [sorted(i for m in minibatch.rows[0] for i in m) for minibatch in plan] == [[0, 4, 5]] * 2
    assert [(m.num_tokens, m.num_sequences) for m in plan] == [(6, 3)] * 2


def test_a_minibatch_without_anything_left_is_no_optimizer_step() -> None:
    batch = batch_of([[0, 1], [0, 1]], cut={(1, 0), (1, 1)})
    credit(drop_truncated=True)(batch)
    plan = pack_minibatches(batch, minibatch_prompts=1, epochs=1, num_ranks=1, microbatch_tokens=100, seed=0)
    assert [m.index for m in plan] == [0]


def test_a_step_of_truncated_answers_only_says_what_to_change() -> None:
    batch = batch_of([[0, 1]], cut={(0, 0), (0, 1)})
    credit(drop_truncated=True)(batch)
    with pytest.raises(DataError, match="every answer of step 3 was truncated.*max_response_tokens"):
        pack_minibatches(batch, minibatch_prompts=1, epochs=1, num_ranks=1, microbatch_tokens=9, seed=0)


def test_an_estimator_of_token_columns_gets_its_scalars_on_the_ranks() -> None:
    batch = batch_of([[0, 1]], greedy=[0.5])
    credit(estimator="remax", kl={"coefficient": 0.1, "in": "reward"})(batch)
    assert batch.advantage_N is None
    assert batch.scalars["greedy_reward"].tolist() == [0.5, 0.5]


def test_an_estimator_gets_the_number_of_turns_that_was_played() -> None:
    batch = batch_of([[0, 1], [1, 1]])
    assert CONTROLLER_COLUMNS["turns"](batch).tolist() == [1, 1, 1, 1]
    for turns, trajectory in enumerate(batch.trajectories, 2):
        trajectory.turns = turns
    assert CONTROLLER_COLUMNS["turns"](batch).tolist() == [2, 3, 4, 5]


def test_the_controller_gives_what_the_table_says_it_gives() -> None:
    batch = batch_of([[0, 1], [1, 1]], greedy=[0.5, 1.0])
    for group in batch.groups:
        group.prompt = replace(group.prompt, row={"v_star": 0.5})
    assert CONTROLLER_COLUMNS.keys() == given_by("controller")
    for name, make in CONTROLLER_COLUMNS.items():
        column_N, spec = make(batch), COLUMNS[name]
        assert (column_N.dtype, column_N.ndim) == (spec.dtypes[0], 1 + len(spec.axes)), name
        assert len(column_N) == len(batch)


def test_a_column_that_was_declared_is_known_by_who_gives_it(monkeypatch) -> None:
    assert credit(estimator="gigpo").estimator.needs == {"anchor", "turn", "turn_reward"}
    for name in ("anchor", "turn"):
        monkeypatch.setitem(COLUMNS, name, replace(COLUMNS[name], source=None))
    with pytest.raises(ConfigError, match="the estimator needs anchor, turn, which no part"):
        credit(estimator="gigpo")


def test_answers_to_different_prompts_in_one_group_stop_the_run() -> None:
    # planted: group numbers that are off by one
    batch = batch_of([[0, 1], [0, 1]])
    batch.group_N = np.array([0, 0, 0, 1])
    with pytest.raises(GuardError, match="group 0 holds answers to different prompts.*guards=off"):
        credit()(batch)
    assert credit(guards="off")(batch) == []


def test_a_prompt_in_two_groups_is_suspicious() -> None:
    (finding,) = credit()(batch_of([[0, 1], [0, 1]], uids=["train/0", "train/0"]))
    assert finding.guard == "groups" and "several groups" in finding.text


def test_a_step_that_takes_every_prompt_twice_is_not() -> None:
    assert credit(samples_per_prompt=2)(batch_of([[0, 1], [0, 1]], uids=["train/0", "train/0"])) == []


def test_a_prompt_that_comes_again_where_an_epoch_ends_is_not() -> None:
    uids = ["train/0", "train/1", "train/2", "train/3", "train/0"]
    assert credit()(batch_of([[0, 1]] * 5, uids=uids)) == []


def test_an_estimator_that_forgets_the_baseline_stops_the_run(monkeypatch) -> None:
    # planted: GRPO without its mean
    monkeypatch.setattr("hybridrl.algorithms.estimators.grpo.centre", lambda reward_N, group_N: reward_N)
    with pytest.raises(GuardError, match="advantages of group 1 sum to"):
        credit()(batch_of([[0, 1], [1, 1]]))


def test_a_reward_that_counts_tokens_is_suspicious() -> None:
    lengths = [[g + i + 1 for i in range(8)] for g in range(8)]
    (finding,) = credit()(batch_of(lengths, lengths=lengths))
    assert finding.guard == "length" and "longer answers win" in finding.text


@pytest.mark.parametrize(
    "algorithm,message",
    [
        ({"shaping": ["overlong"]}, "needs the option limit"),
        (
            {"estimator": "distillation"},
            r"learns from a teacher \(estimator distillation, .*algorithm.teacher is not set",
        ),
        (
            {"teacher": "some/model"},
            r"algorithm.teacher = some/model is not used \(estimator grpo, loss ppo_clip",
        ),
        ({"drop_truncated": True, "kl": {"coefficient": 0.1, "in": "reward"}}, "needs the tokens of all"),
    ],
)
def test_what_no_run_can_do_is_refused(algorithm, message) -> None:
    with pytest.raises(ConfigError, match=message):
        credit(**algorithm)
