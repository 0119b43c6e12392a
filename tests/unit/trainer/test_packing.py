"""Packed microbatches say the same as the rows that they are made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trainer_values as values
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import trajectory

from hybridrl.columns import COLUMNS, ColumnSpec
from hybridrl.errors import ColumnError
from hybridrl.trainer.context import in_chunks, in_order
from hybridrl.trainer.loaded import LoadedBatch
from hybridrl.trainer.packing import PackedBatch, idle_microbatch
from hybridrl.trainer.places import TokenPartition
from hybridrl.trainer.saved_groups import select

CPU = torch.device("cpu")


def packed(**changes) -> tuple[PackedBatch, values.RankBatch]:
    batch = values.make_batch([], **changes)
    return PackedBatch(batch, CPU, TokenPartition()), batch


def test_every_trained_token_is_predicted_from_the_tokens_before_it() -> None:
    made, batch = packed()
    rows = [7, 1, 2, 10, 4]
    microbatch = made.microbatch(rows)
    token_T, position_T = microbatch.token_T.numpy(), microbatch.packing.position_T.numpy()
    found = set()
    for at, target in zip(microbatch.packing.predict_O.tolist(), microbatch.target_O.tolist()):
        found.add((*token_T[at - position_T[at] : at + 1].tolist(), target))
    expected = set()
    for n in rows:
        block, row = trajectory(batch, n)
        tokens = block.token_T[row].tolist()
        expected |= {tuple(tokens[: t + 1]) for t in np.flatnonzero(block.loss_mask_T[row])}
    assert found == expected
    assert len(microbatch.target_O) == sum(
        int(b.loss_mask_T[r].sum()) for b, r in (trajectory(batch, n) for n in rows)
    )


def test_sequences_lie_in_runs_of_equal_length_and_end_before_their_last_trained_token() -> None:
    made, batch = packed()
    rows = list(range(12))
    microbatch = made.microbatch(rows)
    lengths = []
    for n in rows:
        block, row = trajectory(batch, n)
        trained = np.flatnonzero(block.loss_mask_T[row])
        lengths += [int(trained[-1])] if len(trained) else []
    runs = microbatch.packing.runs
    assert [length for count, length in runs for _ in range(count)] == sorted(lengths)
    assert len({length for _, length in runs}) == len(runs)
    assert len(microbatch.token_T) == sum(lengths)
    assert microbatch.num_seqs == len(lengths) == 11


def test_columns_come_back_in_the_order_of_the_tokens() -> None:
    made, batch = packed()
    logp_U = made.column_U("rollout_logp")
    assert len(logp_U) == made.num_trained == sum(int(block.loss_mask_T.sum()) for block in batch.blocks)
    for rows in ([5, 0, 9], [3], [11, 10, 3, 1]):
        positions, owner = made.trained(rows)
        parts = [
            b.columns["rollout_logp"][r][b.loss_mask_T[r]] for b, r in (trajectory(batch, n) for n in rows)
        ]
        np.testing.assert_array_equal(logp_U[positions], np.concatenate(parts))
        np.testing.assert_array_equal(owner, np.repeat(rows, [len(p) for p in parts]))


def test_a_microbatch_indexes_columns_by_its_own_tokens() -> None:
    made, batch = packed()
    token_U = torch.zeros(made.num_trained, dtype=torch.int64)
    for n in range(12):
        block, row = trajectory(batch, n)
        positions, _ = made.trained([n])
        token_U[positions] = torch.from_numpy(block.token_T[row][block.loss_mask_T[row]].astype(np.int64))
    microbatch = made.microbatch([8, 2, 1, 5])
    assert torch.equal(token_U[microbatch.trained_R], microbatch.target_O)
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
        PackedBatch(batch.with_blocks(blocks), CPU, TokenPartition())


def watched(batch: values.RankBatch) -> values.RankBatch:
    """The batch with a column observed: every other token after the prompt, trained on or not."""
    blocks = []
    for block in batch.blocks:
        starts = zip(block.start_N[:-1].tolist(), block.prompt_tokens_N.tolist(), strict=True)
        observed_T = np.zeros(len(block.token_T), bool)
        for (start, prompt), stop in zip(starts, block.start_N[1:].tolist(), strict=True):
            observed_T[start + prompt : stop : 2] = True
        blocks.append(replace(block, columns={**block.columns, "observed": observed_T}))
    return batch.with_blocks(blocks)


def test_observed_tokens_are_predicted_after_the_trained_ones() -> None:
    batch, rows = watched(values.make_batch([])), [7, 1, 2, 10, 4, 3]
    made = PackedBatch(batch, CPU, TokenPartition(), observed=True)
    microbatch = made.microbatch(rows)
    token_T, position_T = microbatch.token_T.numpy(), microbatch.packing.position_T.numpy()
    found = []
    for at, target in zip(microbatch.packing.predict_O.tolist(), microbatch.target_O.tolist(), strict=True):
        found.append((*token_T[at - position_T[at] : at + 1].tolist(), target))
    expected = [], []
    for n in rows:
        block, row = trajectory(batch, n)
        tokens, mask_T = block.token_T[row].tolist(), block.loss_mask_T[row]
        if mask_T.any():  # the fourth row has none
            observed_T = block.columns["observed"][row] & ~mask_T
            for part, chosen_T in zip(expected, (mask_T, observed_T), strict=True):
                part += [tuple(tokens[: t + 1]) for t in np.flatnonzero(chosen_T)]
    number = len(expected[0])
    assert expected[1] and number == len(microbatch.trained_R)
    assert sorted(found[:number]) == sorted(expected[0])
    assert sorted(found[number:]) == sorted(expected[1])
    assert len(microbatch.seq_E) == len(expected[1]) == made.num_observed(rows)
    value_P = torch.arange(len(found))
    assert microbatch.trained(value_P).tolist() == list(range(number))
    assert microbatch.observed(value_P).tolist() == list(range(number, len(found)))


def test_an_observed_token_that_no_output_predicts_is_left_out() -> None:
    batch = values.make_batch([])
    blocks = [
        replace(block, columns={**block.columns, "observed": np.ones(len(block.token_T), bool)})
        for block in batch.blocks
    ]
    made = PackedBatch(batch.with_blocks(blocks), CPU, TokenPartition(), observed=True)
    block, row = trajectory(batch, 5)
    own = int((~block.loss_mask_T[row]).sum())
    assert (
        len(made.microbatch([5]).seq_E) == made.num_observed([5]) == own - 1
    )  # without the first of the row


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(0, 11), min_size=1, unique=True),
    size=st.integers(1, 3),
    tp=st.integers(1, 3),
    observed=st.booleans(),
)
def test_ranks_that_share_sequences_have_all_of_them_together(
    rows: list[int], size: int, tp: int, observed: bool
) -> None:
    batch = watched(values.make_batch([]))
    whole = PackedBatch(batch, CPU, TokenPartition(), observed=observed).microbatch(rows)
    parts = [
        PackedBatch(batch, CPU, TokenPartition(rank=r, size=size, tp=tp), observed=observed).microbatch(rows)
        for r in range(size)
    ]
    if whole is None:
        assert parts == [None] * size
        return
    assert len({len(part.token_T) for part in parts}) == 1
    assert len(parts[0].token_T) % tp == 0
    most = parts[0].most_predicted
    gathered = torch.full((size, most), -1)
    for rank, part in enumerate(parts):
        gathered[rank, : len(part.target_O)] = part.target_O
        assert torch.equal(part.trained_R, whole.trained_R)
        assert torch.equal(part.seq_R, whole.seq_R) and torch.equal(part.seq_E, whole.seq_E)
        assert torch.equal(part.from_P, parts[0].from_P)
    assert torch.equal(gathered.flatten()[parts[0].from_P], whole.target_O)


@pytest.mark.parametrize("size", [2, 3])
def test_sequences_come_back_from_the_chunks_that_ranks_have(size) -> None:
    batch, rows = values.make_batch([]), list(range(12))
    parts = [PackedBatch(batch, CPU, TokenPartition(rank=r, size=size)).microbatch(rows) for r in range(size)]
    partitioned, at, found = torch.stack([part.token_T for part in parts]), 0, []
    positions = torch.stack([part.packing.position_T for part in parts])
    for count, length in parts[0].packing.runs:
        own = slice(at, at + count * length // size)
        assert (in_order(positions[:, own], count, length) == torch.arange(length)).all()
        found += in_order(partitioned[:, own], count, length).tolist()
        at = own.stop
    whole = PackedBatch(batch, CPU, TokenPartition()).microbatch(rows)
    lengths = [length for count, length in whole.packing.runs for _ in range(count)]
    expected = [sequence.tolist() for sequence in whole.token_T.split(lengths)]
    assert [sequence[: len(e)] for sequence, e in zip(found, expected, strict=True)] == expected


def test_an_idle_microbatch_is_one_that_all_ranks_can_run() -> None:
    for size, tp in ((1, 1), (1, 3), (2, 1), (2, 3)):
        idle = [idle_microbatch(TokenPartition(rank=r, size=size, tp=tp), CPU) for r in range(size)]
        assert {len(m.token_T) % tp for m in idle} == {0}
        assert min(len(m.token_T) for m in idle) == max(len(m.token_T) for m in idle) > 0
        assert all(m.num_seqs == len(m.target_O) == len(m.trained_R) == 0 for m in idle)


def test_a_column_of_any_name_and_kind_is_taken_at_the_trained_tokens(monkeypatch) -> None:
    """Per token as it is; per turn as the turn of each token; per prompt without a copy for any sample."""
    monkeypatch.setitem(COLUMNS, "mood", ColumnSpec("token", "int64", "block", "a number of each token", 0))
    monkeypatch.setitem(COLUMNS, "goal", ColumnSpec("turn", "float32", "block", "a number of each turn"))
    monkeypatch.setitem(
        COLUMNS, "picture", ColumnSpec("prompt", "float32", "block", "of the question", axes="PC")
    )
    whole = values.make_block(4)
    picture = np.ones((5, 2), np.float32)
    pictures = np.empty(4, object)
    pictures[:] = [picture, picture, picture[:2].copy(), picture]
    found = {
        "mood": np.where(whole.loss_mask_T, np.arange(len(whole.token_T)), 0),
        "turn_start": whole.start_N[:-1],
        "goal": np.array([3, 1, 4, 2], np.float32),
        "picture": pictures,
    }
    block = replace(whole, columns=found)
    batch = values.make_batch([], count=4).with_blocks([select(block, [2, 0]), select(block, [1, 3])])
    made = PackedBatch(batch, CPU, TokenPartition())
    rows_of_blocks = ([2, 0], [1, 3])
    moods = [found["mood"][block.row(n)][block.loss_mask_T[block.row(n)]] for r in rows_of_blocks for n in r]
    assert made.column_U("mood").tolist() == np.concatenate(moods).tolist()
    goals = np.repeat([found["goal"][n] for rows in rows_of_blocks for n in rows], [len(m) for m in moods])
    assert made.column_U("goal").tolist() == goals.tolist()
    microbatch = made.microbatch([2, 1, 0])  # rows 0, 1 and 2 of the batch are 2, 1 and 0 of the block
    assert microbatch.num_seqs == 3
    arrays = LoadedBatch(batch, 0, CPU, TokenPartition()).of_prompts("picture")
    assert [np.shares_memory(array, picture) for array in arrays] == [n != 0 for n in range(4)]
    with pytest.raises(ColumnError, match="tokens came without column version"):
        made.column_U("version")


@pytest.mark.parametrize(("size", "count", "length"), [(2, 3, 8), (3, 1, 6), (4, 2, 16)])
def test_whole_sequences_are_partitioned_as_packing_does(size: int, count: int, length: int) -> None:
    whole = torch.arange(count * length).view(count, length)
    partitioned = in_chunks(whole, size)
    assert torch.equal(in_order(partitioned, count, length), whole)
    first = partitioned[0].view(count, -1)[0].tolist()  # the first chunk and the last one
    chunk = length // (2 * size)
    assert first == [*range(chunk), *range(length - chunk, length)]
