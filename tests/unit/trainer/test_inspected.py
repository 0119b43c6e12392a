"""Which trajectories of a loaded batch are shown token by token, and with what."""

import numpy as np
import torch
import trainer_values as values

from hybridrl.trainer.inspected import inspect
from hybridrl.trainer.loaded import LoadedBatch
from hybridrl.trainer.places import TokenPartition


class Alone:
    """The reduction of a single rank."""

    def sum(self, value):
        return value

    max = sum


def loaded(rows=range(12)) -> LoadedBatch:
    minibatch = values.make_minibatch(0, [[rows]], values.make_block())
    batch = LoadedBatch(values.make_batch([minibatch], step=3), 0, torch.device("cpu"), TokenPartition())
    batch.unpack({"rollout_logp"})
    return batch


def with_gap_at(batch: LoadedBatch, row: int, gap: float) -> LoadedBatch:
    old = batch.columns["rollout_logp"].clone()
    old[batch.packed.trained([row])[0][-1]] += gap
    batch.columns["old_logp"] = old
    return batch


def test_a_trajectory_comes_with_its_own_tokens_and_columns() -> None:
    batch = with_gap_at(loaded(), 5, 0.5)
    (found,) = inspect(batch, Alone(), [5], num_suspicious=0)
    block = batch.batch.blocks[int(batch.batch.block_N[5])]
    tokens = block.row(int(batch.batch.row_N[5]))
    assert found.token_ids == tuple(block.token_T[tokens])
    assert found.rollout_logp == tuple(block.columns["rollout_logp"][tokens][block.loss_mask_T[tokens]])
    gaps = np.subtract(found.old_logp, found.rollout_logp)
    assert abs(gaps[-1] - 0.5) < 1e-6 and not gaps[:-1].any()
    assert found.advantage is not None and len(found.advantage) == len(gaps)


def test_the_one_on_which_trainer_and_engine_disagree_is_added() -> None:
    found = inspect(with_gap_at(loaded(), 7, -0.25), Alone(), [2, 4], num_suspicious=1)
    assert [(one.index, one.suspicious) for one in found] == [(2, False), (4, False), (7, True)]


def test_one_that_is_worth_reading_for_two_reasons_comes_once() -> None:
    found = inspect(with_gap_at(loaded(), 4, 1.0), Alone(), [2, 4], num_suspicious=1)
    assert [(one.index, one.suspicious) for one in found] == [(2, False), (4, True)]


def test_nobody_is_suspicious_where_both_agree_or_nothing_was_computed() -> None:
    assert [one.index for one in inspect(with_gap_at(loaded(), 4, 0.0), Alone(), [2], num_suspicious=1)] == [
        2
    ]
    assert [one.index for one in inspect(loaded(), Alone(), [2], num_suspicious=1)] == [2]


def test_a_trajectory_that_was_not_computed_has_no_log_probabilities_of_the_trainer() -> None:
    batch = with_gap_at(loaded(range(6)), 5, 0.5)
    skipped, computed = inspect(batch, Alone(), [9, 5], num_suspicious=0)
    assert skipped.old_logp is None and skipped.rollout_logp is not None
    assert computed.old_logp is not None
