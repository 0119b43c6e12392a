"""The batch as the teacher reads it: hints are put in, and trained tokens stay as they are."""

from dataclasses import replace

import numpy as np
import pytest
import trainer_values as values
from rows import trajectory

from hybridrl.errors import ColumnError
from hybridrl.trainer.hints import with_hints
from hybridrl.types import Hint

HINTS = (Hint((30, 31, 32)), Hint((33,), after=1), Hint((34, 35), after=1))


def test_every_trajectory_has_the_hint_of_its_group():
    batch = replace(values.make_batch([]), hints=HINTS)
    hinted = with_hints(batch)
    for n in range(12):
        block, row = trajectory(batch, n)
        other, place = trajectory(hinted, n)
        hint, tokens = HINTS[n // 4], block.token_T[row].tolist()
        expected = [*tokens[: hint.after], *hint.token_ids, *tokens[hint.after :]]
        assert other.token_T[place].tolist() == expected
        at = block.start_N.tolist().index(row.start)
        assert other.prompt_tokens_N[at] == block.prompt_tokens_N[at] + len(hint.token_ids)
        trained = block.token_T[row][block.loss_mask_T[row]]
        np.testing.assert_array_equal(other.token_T[place][other.loss_mask_T[place]], trained)
    for block, other in zip(batch.blocks, hinted.blocks, strict=True):  # the same U, in the same order
        np.testing.assert_array_equal(block.token_T[block.loss_mask_T], other.token_T[other.loss_mask_T])


def test_a_row_of_a_block_that_is_not_in_the_batch_stays_as_it_is():
    batch = values.make_batch([])
    some = np.arange(2, 12)
    fewer = replace(
        batch,
        block_N=batch.block_N[some],
        row_N=batch.row_N[some],
        group_N=batch.group_N[some],
        hints=HINTS,
    )
    hinted = with_hints(fewer)
    for block, other in zip(batch.blocks, hinted.blocks, strict=True):
        np.testing.assert_array_equal(other.token_T[other.row(0)], block.token_T[block.row(0)])
        np.testing.assert_array_equal(block.token_T[block.loss_mask_T], other.token_T[other.loss_mask_T])


def test_prompts_without_hints_are_refused():
    with pytest.raises(ColumnError, match="a prompt came without one"):
        with_hints(values.make_batch([]))
