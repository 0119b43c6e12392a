"""Columns, estimators and objectives on ranks: nothing depends on who holds a trajectory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainer_scenarios as scenarios
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import CriticConfig
from hybridrl.trainer.saved_groups import select

IN_LOSS = AlgorithmConfig(kl={"coefficient": 0.1, "estimator": "k3", "in": "loss"})
IN_REWARD = AlgorithmConfig(
    kl={"coefficient": 0.1, "estimator": "k1", "in": "reward"}, estimator="reinforce_plus_plus"
)

PRIME = AlgorithmConfig(estimator="prime", process_model={"optimizer": {"lr": 1e-3}})
GAE = AlgorithmConfig(estimator="gae")
SOLVED = {"advantage_N": None, "reward_N": np.array([0, 1, 1, 0] * 3, np.float32)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return values.make_model(tmp_path_factory.mktemp("models"), "qwen3")


def compare(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Every number of two runs within what DESIGN.md allows a change of ranks."""
    for a, b in zip(one["played"], other["played"], strict=True):
        assert a["loaded"] == pytest.approx(b["loaded"], rel=2e-6, abs=1e-6)
        for report_a, report_b in zip(a["reports"], b["reports"], strict=True):
            # Whitened advantages make the loss a difference of equal sums of size 1.
            assert report_a["loss"] == pytest.approx(report_b["loss"], rel=2e-6, abs=1e-7)
            assert report_a["grad_norm"] == pytest.approx(report_b["grad_norm"], rel=2e-6)
    for logp_a, logp_b in zip(one["logps"], other["logps"], strict=True):
        np.testing.assert_allclose(logp_a, logp_b, atol=5e-6, rtol=0)


def test_the_reference_is_the_initial_model_whatever_was_trained(model) -> None:
    minibatches = [scenarios.split(0, 1, (6,))]
    run = on_ranks(1, scenarios.algorithm_run, model, (1, 1, 1), IN_LOSS, minibatches)[0]
    initial, before, _ = run["logps"]
    mask_T = values.make_block().loss_mask_T
    gap = (initial - before)[mask_T].astype(float)
    k3 = (np.exp(gap) - 1 - gap).mean()
    first, second = (played["reports"][0]["metrics"]["actor/kl_loss"] for played in run["played"])
    assert first == 0.0  # not trained yet: the very same forward pass
    assert k3 > 1e-4
    assert second == pytest.approx(k3, rel=1e-4)


def test_a_token_level_estimator_sees_the_same_batch_on_any_ranks(model) -> None:
    alone = on_ranks(
        1, scenarios.algorithm_run, model, (1, 1, 1), IN_REWARD, [scenarios.split(0, 1, ())], advantage_N=None
    )
    for shape in ((1, 1, 2), (1, 2, 1)):
        split = [scenarios.split(0, shape[2], (4,))]
        shared = on_ranks(2, scenarios.algorithm_run, model, shape, IN_REWARD, split, advantage_N=None)
        compare(alone[0], shared[0])


def test_a_later_epoch_may_hand_trajectories_to_other_ranks(model) -> None:
    """The second epoch swaps the ranks' trajectories: their old_logp was computed by the other one."""
    block, mine, other = values.make_block(), range(0, 6), range(6, 12)
    epochs = [
        values.make_minibatch(0, [[mine], [other]], block),
        values.make_minibatch(1, [[other], [mine]], block),
    ]
    swapped = on_ranks(2, scenarios.algorithm_run, model, (1, 1, 2), IN_LOSS, epochs)
    whole = [values.make_minibatch(i, [[range(12)]], block) for i in range(2)]
    compare(on_ranks(1, scenarios.algorithm_run, model, (1, 1, 1), IN_LOSS, whole)[0], swapped[0])


def test_ranks_and_microbatches_may_be_empty(model) -> None:
    """Row 3 has no trained token; a microbatch of it alone has nothing to do, nor has a rank of such."""
    block, rest = values.make_block(), [n for n in range(12) if n != 3]
    uneven = [values.make_minibatch(i, [[rest, [3]], [[3], []]], block) for i in range(2)]
    whole = [values.make_minibatch(i, [[range(12)]], block) for i in range(2)]
    lone = on_ranks(1, scenarios.algorithm_run, model, (1, 1, 1), AlgorithmConfig(), whole)
    shared = on_ranks(2, scenarios.algorithm_run, model, (1, 1, 2), AlgorithmConfig(), uneven)
    compare(lone[0], shared[0])


def test_leaving_old_logp_to_a_single_step_changes_nothing(model) -> None:
    """One minibatch takes old_logp from its own forward pass; two force a pass of their own before."""
    lone = [scenarios.split(0, 1, (6,))]
    first = on_ranks(1, scenarios.algorithm_run, model, (1, 1, 1), AlgorithmConfig(), lone)[0]["played"][0]
    twice = [scenarios.split(i, 1, (6,)) for i in range(2)]
    other = on_ranks(1, scenarios.algorithm_run, model, (1, 1, 1), AlgorithmConfig(), twice)[0]["played"][0]
    agreement = {k: v for k, v in first["reports"][0]["metrics"].items() if k.startswith("training/")}
    assert first["loaded"] == {}
    assert agreement == {k: v for k, v in other["loaded"].items() if k.startswith("training/")}
    assert first["reports"][0]["loss"] == other["reports"][0]["loss"]
    assert first["reports"][0]["grad_norm"] == other["reports"][0]["grad_norm"]
    assert first["reports"][0]["metrics"]["actor/ratio_max_abs_err"] == 0.0


def test_a_loss_that_is_not_finite_is_refused_on_every_rank_and_changes_nothing(model) -> None:
    for rank in on_ranks(2, scenarios.not_finite, model, (1, 1, 2)):
        assert rank["said"].startswith("NonFiniteError")
        assert "step 1, minibatch 0" in rank["said"]
        assert rank["unchanged"]
        assert rank["after_refusal"] == rank["alone"]


def test_recomputed_activations_give_the_same_bits(model) -> None:
    kept, recomputed = (
        on_ranks(1, scenarios.with_actor, model, (1, 1, 1), values.make_actor(recompute=choice))[0]
        for choice in ("none", "full")
    )
    assert kept["reports"] == recomputed["reports"]
    for name, weight in kept["weights"].items():
        np.testing.assert_array_equal(weight, recomputed["weights"][name])


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 1), (1, 2, 1)])
@pytest.mark.parametrize("family", ["qwen3", "qwen2_tied"])
def test_logits_may_be_computed_in_pieces(tmp_path, shape, family) -> None:
    """400 logits at once, of 19 or 37 entries by some thirty rows."""
    actor, model = values.make_actor(), values.make_model(tmp_path, family)
    whole = on_ranks(1, scenarios.with_actor, model, (1, 1, 1), actor)[0]
    num_ranks = int(np.prod(shape))
    pieces = on_ranks(num_ranks, scenarios.with_actor, model, shape, actor, logits_at_once=400)[0]
    for one, other in zip(whole["reports"], pieces["reports"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-6)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-6)
    assert pieces["reports"][0]["metrics"]["actor/ratio_max_abs_err"] == 0.0


def test_bf16_is_fp32_up_to_its_rounding(model) -> None:
    """bf16 keeps 8 bits: relative rounding of 2**-9 per operation, over about forty operations in depth."""
    full = on_ranks(1, scenarios.with_actor, model, (1, 1, 1), values.make_actor())[0]
    half = on_ranks(2, scenarios.with_actor, model, (2, 1, 1), values.make_actor(precision="bf16"))[0]
    assert half["reports"][0]["loss"] == full["reports"][0]["loss"]  # all ratios are 1
    assert half["reports"][0]["metrics"]["actor/ratio_max_abs_err"] == 0.0
    assert half["reports"][0]["grad_norm"] == pytest.approx(full["reports"][0]["grad_norm"], rel=0.08)


def test_a_leaked_mask_and_moved_weights_stop_the_step(model) -> None:
    found = on_ranks(1, scenarios.guarded, model)[0]
    assert found["leaked"].startswith("GuardError: the loss mask covers")
    assert found["moved"].startswith("GuardError: first ratio is off by")


def test_a_kl_coefficient_follows_its_target_and_a_resumed_run_goes_on_with_it(model, tmp_path) -> None:
    """The target is far above what two steps move: 20 % less at each batch, whose twelve are the horizon."""
    kl = {"coefficient": 0.1, "target": 10.0, "horizon": 12}
    for place, metric in (("loss", "actor/kl_coef"), ("reward", "actor/reward_kl_penalty_coeff")):
        algorithm = AlgorithmConfig(kl={**kl, "in": place}, entropy_coefficient=0.01, entropy_target=50.0)
        run = on_ranks(1, scenarios.followed, model, algorithm, tmp_path / place, advantage_N=None)[0]
        assert run["seen"][metric] == pytest.approx([0.1, 0.08, 0.064], rel=1e-6)
        assert run["seen"]["actor/entropy_coef"] == pytest.approx([0.01, 0.015, 0.02], rel=1e-6)
        assert run["again"] == run["seen"][metric][2]


def test_primes_process_model_learns_outcomes_and_does_so_alike_on_any_ranks(model) -> None:
    minibatches = [scenarios.split(0, 1, (6,))]
    alone = on_ranks(1, scenarios.algorithm_run, model, (1, 1, 1), PRIME, minibatches, steps=6, **SOLVED)[0]
    loaded = [played["loaded"] for played in alone["played"]]
    # It starts as the reference: log 2 for each of the eleven answers that have a trained token.
    assert loaded[0]["process/loss"] == pytest.approx(np.log(2) * 11 / 12, rel=1e-6)
    assert loaded[-1]["process/loss"] < 0.9 * loaded[0]["process/loss"]
    assert loaded[-1]["process/accuracy"] > 0.75
    for shape in ((2, 1, 1), (1, 2, 1), (1, 1, 2)):
        split = [scenarios.split(0, shape[2], (4,))]
        shared = on_ranks(2, scenarios.algorithm_run, model, shape, PRIME, split, **SOLVED)
        compare({"played": alone["played"][:2], "logps": alone["logps"][:3]}, shared[0])


def test_a_student_moves_towards_its_teacher(tmp_path) -> None:
    student, teacher = (values.make_model(tmp_path / name, "qwen3", seed=i) for i, name in enumerate("st"))
    algorithm = AlgorithmConfig(estimator="distillation", teacher=str(teacher))
    minibatches = [scenarios.split(0, 1, ())]
    run = on_ranks(1, scenarios.algorithm_run, student, (1, 1, 1), algorithm, minibatches, advantage_N=None)
    block = values.make_block()
    with torch.no_grad():
        of_teacher = torch.cat(values.plain_logp(values.load_plain(teacher), block, 0.8)).numpy()
    of_student = run[0]["logps"][0][block.loss_mask_T]
    first = run[0]["played"][0]["reports"][0]
    assert first["loss"] == pytest.approx(-(of_teacher - of_student).mean(), rel=1e-5)  # the ratios are 1


def test_a_critic_learns_the_returns_and_does_so_alike_on_any_ranks(model) -> None:
    """Discount and lambda are 1: the return of every token is its answer's reward."""
    critic = CriticConfig(optimizer={"lr": 3e-3, "eps": 1e-4})
    changes = {**SOLVED, "setup": {"critic": critic}}
    minibatches = [scenarios.split(i, 1, (6,)) for i in range(2)]
    alone = on_ranks(1, scenarios.algorithm_run, model, (1, 1, 1), GAE, minibatches, steps=6, **changes)[0]
    block = values.make_block()
    trained_N = [int(block.loss_mask_T[block.row(n)].sum()) for n in range(12)]
    mean_return = np.average(SOLVED["reward_N"], weights=trained_N)
    first, last = (alone["played"][i] for i in (0, -1))
    assert first["loaded"]["critic/values/mean"] == 0.0  # before it learned anything
    assert first["loaded"]["critic/returns/mean"] == pytest.approx(mean_return, rel=1e-6)
    assert first["reports"][0]["metrics"]["critic/vf_loss"] == pytest.approx(mean_return / 2, rel=1e-6)
    assert first["loaded"]["critic/vf_explained_var"] == pytest.approx(0.0, abs=1e-6)
    assert last["loaded"]["critic/vf_explained_var"] > 0.3
    for shape in ((2, 1, 1), (1, 2, 1), (1, 1, 2)):
        split = [scenarios.split(i, shape[2], (4,)) for i in range(2)]
        shared = on_ranks(2, scenarios.algorithm_run, model, shape, GAE, split, **changes)[0]
        compare({"played": alone["played"][:2], "logps": alone["logps"][:3]}, shared)
        for one, other in zip(alone["played"][:2], shared["played"], strict=True):
            for report_one, report_other in zip(one["reports"], other["reports"], strict=True):
                for name in ("critic/vf_loss", "critic/grad_norm"):
                    expected = pytest.approx(report_one["metrics"][name], rel=1e-5)
                    assert report_other["metrics"][name] == expected, (shape, name)


@pytest.mark.parametrize("algorithm", [PRIME, GAE, IN_LOSS], ids=["prime", "gae", "kl in loss"])
def test_trajectories_that_were_dropped_from_their_blocks_change_nothing(model, algorithm) -> None:
    changes = SOLVED if algorithm is not IN_LOSS else {}
    minibatches = [scenarios.split(i, 1, (6,)) for i in range(2)]
    whole, index = values.make_block(), np.arange(12)
    blocks = [select(whole, [*range(0, 12, 2), 5, 7]), select(whole, [0, 4, *range(1, 12, 2)])]
    more = {"blocks": blocks, "row_N": index // 2 + 2 * (index % 2)}
    run, with_more = (
        on_ranks(1, scenarios.algorithm_run, model, (1, 1, 1), algorithm, minibatches, **changes, **extra)[0]
        for extra in ({}, more)
    )
    compare(run, with_more)


def test_a_critic_may_learn_before_the_policy_moves(model) -> None:
    changes = {**SOLVED, "setup": {"critic": CriticConfig(pretrain_steps=1)}}
    run = on_ranks(1, scenarios.algorithm_run, model, (1, 1, 1), GAE, [scenarios.split(0, 1, ())], **changes)[
        0
    ]
    initial, after_first, after_second = run["logps"]
    np.testing.assert_array_equal(initial, after_first)
    assert np.abs(after_second - initial).max() > 1e-4


def test_the_optimal_token_baseline_sees_the_whole_vocabulary_on_any_ranks(model) -> None:
    algorithm = AlgorithmConfig(estimator="optimal_token_baseline")
    alone = on_ranks(
        1, scenarios.algorithm_run, model, (1, 1, 1), algorithm, [scenarios.split(0, 1, ())], **SOLVED
    )[0]
    for shape in ((2, 1, 1), (1, 2, 1), (1, 1, 2)):
        split = [scenarios.split(0, shape[2], (4,))]
        compare(alone, on_ranks(2, scenarios.algorithm_run, model, shape, algorithm, split, **SOLVED)[0])
    assert alone["played"][0]["reports"][0]["grad_norm"] > 0
    with torch.no_grad():
        expected = values.plain_collision(values.load_plain(model), values.make_block(), 0.8)
    for shape in ((1, 1, 1), (2, 1, 1)):
        found = on_ranks(shape[0], scenarios.collisions, model, shape)
        for rank in found:
            np.testing.assert_allclose(rank, expected, rtol=1e-5)


def test_the_lag_of_a_token_is_counted_in_updates(model) -> None:
    """Tokens of version 0 in a batch that makes version 3 are two updates old."""
    algorithm = AlgorithmConfig(loss={"name": "decoupled_ppo", "near": "interpolated"})
    minibatches = [scenarios.split(i, 1, ()) for i in range(2)]
    assert on_ranks(1, scenarios.lags, model, algorithm, minibatches, 3)[0] == [2.0]
