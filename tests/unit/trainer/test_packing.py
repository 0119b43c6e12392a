"""Packed microbatches say the same as the rows that they are made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trainer_values as values

from hybridrl.trainer.megatron.packing import PackedBatch

CPU = torch.device("cpu")


def packed(**changes) -> tuple[PackedBatch, values.RankBatch]:
    batch = values.make_batch([], **changes)
    return PackedBatch(batch, CPU), batch


def test_every_trained_token_is_predicted_from_the_tokens_before_it() -> None:
    made, batch = packed()
    rows = [7, 1, 2, 10, 4]
    microbatch = made.microbatch(rows)
    token_T, position_T = microbatch.token_T.numpy(), microbatch.packing.position_T.numpy()
    found = set()
    for at, target in zip(microbatch.packing.predict_R.tolist(), microbatch.target_R.tolist()):
        found.add((*token_T[at - position_T[at] : at + 1].tolist(), target))
    expected = set()
    for n in rows:
        block, row = batch.trajectory(n)
        tokens = block.token_T[row].tolist()
        expected |= {tuple(tokens[: t + 1]) for t in np.flatnonzero(block.loss_mask_T[row])}
    assert found == expected
    assert len(microbatch.target_R) == sum(
        int(b.loss_mask_T[r].sum()) for b, r in map(batch.trajectory, rows)
    )


def test_sequences_lie_in_runs_of_equal_length_and_end_before_their_last_trained_token() -> None:
    made, batch = packed()
    rows = list(range(12))
    microbatch = made.microbatch(rows)
    lengths = []
    for n in rows:
        block, row = batch.trajectory(n)
        trained = np.flatnonzero(block.loss_mask_T[row])
        lengths += [int(trained[-1])] if len(trained) else []
    runs = microbatch.packing.runs
    assert [length for count, length in runs for _ in range(count)] == sorted(lengths)
    assert len({length for _, length in runs}) == len(runs)
    assert len(microbatch.token_T) == sum(lengths)
    assert microbatch.num_seqs == len(lengths) == 11


def test_columns_come_back_in_the_order_of_the_tokens() -> None:
    made, batch = packed()
    logp_U = made.column_U("rollout_logp_T")
    assert len(logp_U) == made.num_trained == sum(int(block.loss_mask_T.sum()) for block in batch.blocks)
    for rows in ([5, 0, 9], [3], [11, 10, 3, 1]):
        positions, trajectory = made.trained(rows)
        parts = [b.rollout_logp_T[r][b.loss_mask_T[r]] for b, r in map(batch.trajectory, rows)]
        np.testing.assert_array_equal(logp_U[positions], np.concatenate(parts))
        np.testing.assert_array_equal(trajectory, np.repeat(rows, [len(p) for p in parts]))


def test_a_microbatch_indexes_columns_by_its_own_tokens() -> None:
    made, batch = packed()
    token_U = torch.zeros(made.num_trained, dtype=torch.int64)
    for n in range(12):
        block, row = batch.trajectory(n)
        positions, _ = made.trained([n])
        token_U[positions] = torch.from_numpy(block.token_T[row][block.loss_mask_T[row]].astype(np.int64))
    microbatch = made.microbatch([8, 2, 1, 5])
    assert torch.equal(token_U[microbatch.trained_R], microbatch.target_R)
    assert microbatch.seq_R.unique().tolist() == list(range(microbatch.num_seqs))


def test_rows_without_trained_tokens_make_no_microbatch() -> None:
    made, _ = packed()
    assert made.microbatch([3]) is None
    assert made.microbatch([]) is None


def test_training_on_a_first_token_is_refused() -> None:
    batch = values.make_batch([])
    mask_T = batch.blocks[0].loss_mask_T.copy()
    mask_T[batch.blocks[0].start_N[2]] = True
    blocks = [replace(batch.blocks[0], loss_mask_T=mask_T), batch.blocks[1]]
    with pytest.raises(ValueError, match="row 2 of a block trains on its first token"):
        PackedBatch(replace(batch, blocks=blocks), CPU)
