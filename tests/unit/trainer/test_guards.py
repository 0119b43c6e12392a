"""The columns of a loaded batch that the guards check."""

from dataclasses import dataclass

import numpy as np
import torch

from hybridrl.algorithms.base import OneRank, Tokens
from hybridrl.batch import RankBatch, TokenBlock
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.trainer import guards

STEP, NUM_TOKENS = 5, 100


@dataclass
class Loaded:
    """What `guards.divergence` asks of a loaded batch."""

    batch: RankBatch
    columns: dict[str, torch.Tensor]
    step: int = STEP

    @property
    def tokens_H(self) -> Tokens:
        seq_H = torch.zeros(NUM_TOKENS, dtype=torch.int64)
        return Tokens(seq_H, torch.ones(NUM_TOKENS, dtype=torch.bool), 1)

    def held(self, name):
        return self.columns[name]


def block_of(responses, logp, version=STEP - 1):
    return TokenBlock.from_answers(
        [(1, 2)] * len(responses), responses, [[logp] * len(r) for r in responses], version
    )


def batch_of(*blocks):
    nothing_N = np.zeros(0, np.int64)
    return RankBatch(STEP, blocks, nothing_N, nothing_N, nothing_N, np.zeros(0, np.float32), None)


def findings(version, **logp):
    batch = batch_of(block_of([[3] * NUM_TOKENS], logp["rollout_logp"], version))
    loaded = Loaded(batch, {name: torch.full((NUM_TOKENS,), value) for name, value in logp.items()})
    return [finding for finding in guards.divergence(loaded, OneRank()) if finding is not None]


def test_the_trainers_column_is_checked_on_answers_of_its_own_version():
    assert findings(STEP - 1, rollout_logp=-1.0, old_logp=-1.0, ref_logp=-1.5) == []
    (found,) = findings(STEP - 1, rollout_logp=-1.0, old_logp=-1.5, ref_logp=-1.0)  # planted: swapped
    assert found.guard == "kl_sign"


def test_the_engines_column_is_checked_on_answers_of_an_older_version():
    # the policy has moved away from what it said two updates ago, further than it is from its reference
    assert findings(STEP - 3, rollout_logp=-1.0, old_logp=-1.5, ref_logp=-1.1) == []
    assert len(findings(STEP - 3, rollout_logp=-1.0, old_logp=-1.5, ref_logp=0.0)) == 1  # planted: not filled


def test_the_engines_column_is_checked_where_the_trainer_has_none_yet():
    assert findings(STEP - 1, rollout_logp=-1.0, ref_logp=-1.1) == []
    assert len(findings(STEP - 1, rollout_logp=-1.0, ref_logp=0.0)) == 1  # planted: not filled


def test_answers_that_were_chosen_are_no_samples():
    assert guards.trains_on_all_samples(AlgorithmConfig())
    assert not guards.trains_on_all_samples(AlgorithmConfig.model_validate({"dynamic_sampling": {}}))
    assert not guards.trains_on_all_samples(AlgorithmConfig(drop_truncated=True))


def test_blocks_are_checked_trajectory_by_trajectory():
    certain, unfilled = block_of([[5, 6]] * 3, 0.0), block_of([[5, 6], [5, 7]], 0.0)
    assert [finding for finding in guards.masks(batch_of(certain)) if finding] == []
    (found,) = [finding for finding in guards.masks(batch_of(certain, unfilled)) if finding]
    assert found.guard == "rollout_logp"
