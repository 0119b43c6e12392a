"""The loss on what an environment wrote (ECHO), by hand, and that no split into microbatches changes it."""

import math

import pytest
import torch

from hybridrl.algorithms.base import Tokens, Totals
from hybridrl.algorithms.needs import Needs
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.observations import Observed, observation_weights
from hybridrl.algorithms.rules import credit_errors, turn_errors
from hybridrl.config.presets import PRESETS
from hybridrl.config.schema import AlgorithmConfig, Config
from hybridrl.config.signals import ObservationsConfig
from tests.support.by_hand import column

# Three trajectories; the environment wrote 2 tokens in the first, 1 in the second and none in the third.
LOGP = [[-1.0, -3.0], [-0.5], []]
SEQ_E = torch.tensor([0, 0, 1])
LOGP_E = column(-1.0, -3.0, -0.5)

# Shrivastava et al. 2026, arXiv:2605.24517, equation 3: -(1 / Z) sum over O' of log p, "Z = |O| normalizes
# each sequence by its total observation length"; and the mean over sequences, as of its action loss.
PAPER = ((1.0 + 3.0) / 2 + 0.5 / 1 + 0) / 3
# prime-rl, docs/algorithms.md (August 2026): each component is "normalized by its own global token count".
PRIME_RL = (1.0 + 3.0 + 0.5) / 3


def weights(over, seq_E=SEQ_E, num_seqs=3):
    config = ObservationsConfig(coefficient=0.05, over=over)
    return observation_weights(config, seq_E, num_seqs=num_seqs, num_sequences=3, num_observed=3)


@pytest.mark.parametrize("over,expected", [("answer", PAPER), ("token", PRIME_RL)])
@pytest.mark.parametrize("split", [[[0, 1, 2]], [[0, 2], [1]], [[0], [1], [2]]])
def test_no_split_into_ranks_and_microbatches_changes_the_mean(over, expected, split):
    total = 0.0
    for rows in split:
        logps = [LOGP[row] for row in rows]
        seq_E = torch.tensor([k for k, each in enumerate(logps) for _ in each], dtype=torch.int64)
        part = Observed(logp_E=column(*sum(logps, [])), weight_E=weights(over, seq_E, len(rows)))
        total += float(part.loss())
    assert total == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("over", ["answer", "token"])
def test_the_objective_adds_it_with_its_coefficient(over):
    config = AlgorithmConfig.model_validate(
        {"loss": "reinforce", "observations": {"coefficient": 0.05, "over": over}}
    )
    logp_E = LOGP_E.clone().requires_grad_()
    tokens = Tokens(torch.tensor([0, 1, 2]), torch.ones(3, dtype=torch.bool), 3)
    logp_T, advantage_T = column(-1.0, -2.0, -3.0), column(1.0, 0.0, -1.0)
    loss, metrics = Objective(config)(
        logp_T,
        None,
        {"old_logp": logp_T},
        advantage_T,
        tokens,
        Totals(3, 3),
        Observed(logp_E=logp_E, weight_E=weights(over)),
    )
    expected = PAPER if over == "answer" else PRIME_RL
    assert float(metrics.sum["actor/observation_loss"]) == pytest.approx(expected, abs=1e-7)
    assert float(loss.detach()) == pytest.approx((1.0 - 3.0) / 3 + 0.05 * expected, abs=1e-7)
    loss.backward()
    shares = [1 / 2 / 3, 1 / 2 / 3, 1 / 3] if over == "answer" else [1 / 3] * 3
    assert logp_E.grad is not None
    assert logp_E.grad.tolist() == pytest.approx([-0.05 * share for share in shares], abs=1e-8)


def test_a_minibatch_without_observations_has_none_of_the_loss():
    none = torch.zeros(0, dtype=torch.int64)
    for over in ("answer", "token"):
        config = ObservationsConfig(coefficient=1.0, over=over)
        weight_E = observation_weights(config, none, num_seqs=2, num_sequences=2, num_observed=0)
        assert float(Observed(logp_E=column(), weight_E=weight_E).loss()) == 0.0


def test_the_presets_are_those_of_the_paper_and_of_prime_rl():
    paper = AlgorithmConfig.model_validate(PRESETS["echo"].algorithm)
    assert (paper.observations.coefficient, paper.observations.over) == (0.05, "answer")
    assert (paper.estimator.name, paper.loss.name, paper.aggregate) == ("grpo", "ppo_clip", "token_mean")
    theirs = AlgorithmConfig.model_validate(PRESETS["prime_rl/echo"].algorithm)
    assert (theirs.observations.coefficient, theirs.observations.over) == (0.1, "token")
    assert math.isclose(theirs.loss.options["drift"], 1e-3)


def config(environment=None, **algorithm):
    sections = {"model": "m", "data": {"train": "d.jsonl"}, "reward": "none", "run": {"name": "r"}}
    return Config.model_validate({**sections, "algorithm": algorithm, "environment": environment})


def test_without_an_environment_it_is_refused():
    paper = PRESETS["echo"].algorithm
    (error,) = turn_errors(config(**paper), Needs.of(AlgorithmConfig.model_validate(paper)), frozenset())
    assert str(error).startswith(
        "algorithm.observations.coefficient = 0.05 trains on what an environment writes, and the run has none"
    )
    cfg = config({"name": "guess"}, **paper)
    assert not list(turn_errors(cfg, Needs.of(cfg.algorithm), frozenset()))


def test_a_hint_without_a_teacher_is_refused():
    cfg = AlgorithmConfig.model_validate({"hint": {"field": "solution"}})
    (error,) = credit_errors(cfg, frozenset(), frozenset())
    assert str(error).startswith("algorithm.hint is for a teacher, and none is used")
    taught = AlgorithmConfig.model_validate({"hint": {"field": "solution"}, "teacher_coefficient": 1.0})
    assert not list(credit_errors(taught, frozenset(), frozenset()))
