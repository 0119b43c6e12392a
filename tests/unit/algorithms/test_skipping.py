"""Trajectories of advantage 0 are skipped only where that changes neither loss nor gradient."""

from typing import Any

import pytest

from hybridrl import registry
from hybridrl.algorithms.skipping import zero_advantages_move_nothing
from hybridrl.config.presets import PRESETS
from hybridrl.config.schema import AlgorithmConfig

OTHER_TERMS = {"a_star_po", "dro", "ipo", "kimi_k15", "teacher_divergence"}
"""Losses that move a token whose advantage is 0."""

WHOLE_BATCH = {"clip_cov", "copg", "kl_cov", "m2po", "pf_ppo", "vapo"}
"""Losses with a statistic over the batch."""

OPTIONS = {"dro": {"beta": 0.1}}
AGGREGATES = {
    **dict.fromkeys(("flash_reinforce", "gmpo", "gspo"), "seq_mean_token_mean"),
    **dict.fromkeys(("luspo", "product_clip"), "seq_mean_token_sum"),
}


def skips(**algorithm: Any) -> bool:
    return zero_advantages_move_nothing(AlgorithmConfig.model_validate(algorithm))


@pytest.mark.parametrize("name", registry.names("hybridrl.algorithms.policy_losses"))
def test_every_loss_is_among_those_that_allow_it_or_not(name: str) -> None:
    aggregate = AGGREGATES.get(name, "token_mean")
    found = skips(loss={"name": name, **OPTIONS.get(name, {})}, aggregate=aggregate)
    assert found == (name not in OTHER_TERMS | WHOLE_BATCH)


@pytest.mark.parametrize("name", registry.names("hybridrl.algorithms.aggregates"))
def test_denominators_count_what_is_skipped(name: str) -> None:
    assert skips(aggregate=name)


@pytest.mark.parametrize(
    "algorithm",
    [
        {"kl": {"coefficient": 0.1}},
        {"kl": {"coefficient": 0.1, "in": "reward"}},
        {"entropy_coefficient": 0.01},
        {"entropy_target": 0.5},
        {"entropy_top_share": 0.5},
        {"estimator": "gae"},
        {"correction": ["token_is", "batch_normalise"]},
        {"loss": f"{__name__}:Regularised"},
    ],
)
def test_whatever_moves_other_tokens_keeps_them(algorithm: dict[str, Any]) -> None:
    assert not skips(**algorithm)


def test_corrections_per_token_and_answer_allow_it() -> None:
    assert skips(correction=["token_is", {"name": "geometric_mask"}]) and skips(correction=["bypass"])


def test_presets_are_told_apart() -> None:
    found = {name: skips(**PRESETS[name].algorithm) for name in ("grpo", "dapo", "ppo")}
    assert found["dapo"] and not found["ppo"]


class Regularised:
    """A loss with a pull towards the old policy, whatever the advantage."""

    needs = frozenset({"old_logp"})

    def __call__(self, logp_T, advantage_T, tokens, old_logp_T):
        from hybridrl.algorithms.base import TokenLoss

        return TokenLoss((logp_T - old_logp_T).square() - advantage_T * logp_T, {})
