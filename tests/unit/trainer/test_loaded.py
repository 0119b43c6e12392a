"""What a loaded batch takes from its token blocks."""

import pytest
import torch
import trainer_values as values

from hybridrl.columns import COLUMNS, ColumnSpec
from hybridrl.errors import ColumnError
from hybridrl.trainer.loaded import LoadedBatch
from hybridrl.trainer.places import TokenPartition


def loaded() -> LoadedBatch:
    minibatch = values.make_minibatch(0, [[range(12)]], values.make_block())
    return LoadedBatch(values.make_batch([minibatch], step=3), 0, torch.device("cpu"), TokenPartition())


def test_only_what_is_needed_is_unpacked() -> None:
    batch = loaded()
    assert batch.columns.keys() == {"advantage"}
    batch.unpack({"rollout_logp", "old_logp", "length"})  # the others come from elsewhere
    assert batch.columns.keys() == {"advantage", "rollout_logp"}
    assert batch.columns["rollout_logp"].dtype == torch.float32


def test_the_lag_of_a_token_follows_from_its_version() -> None:
    batch = loaded()
    batch.unpack({"lag"})
    assert batch.columns["lag"].dtype == torch.float32
    assert set(batch.columns["lag"].tolist()) == {2.0}  # step 3 makes version 3 of 2; tokens are of 0


def test_a_column_that_no_block_carries_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COLUMNS, "mood", ColumnSpec("token", "int64", "block", "a number of each token", 0))
    with pytest.raises(ColumnError, match="tokens came without column mood, with rollout_logp, version"):
        loaded().unpack({"mood"})
