"""Packing with each prompt once: the same tokens are predicted from the same tokens at the same positions."""

import numpy as np
import pytest
import torch
from trainer_shared_prompts import grouped_batch, grouped_block

from hybridrl.trainer.packing import PackedBatch
from hybridrl.trainer.places import Microbatch, SharedPrompt, TokenPartition
from hybridrl.trainer.shared_prompts import sharing

CPU = torch.device("cpu")


def packed(rows: list[int], *, share: bool, tp: int = 1) -> Microbatch:
    partition = TokenPartition(tp=tp)
    made = PackedBatch(grouped_batch([]), CPU, partition, share_prompts=share).microbatch(rows)
    assert made is not None
    return made


def predicted(made: Microbatch) -> list[tuple[int, int, int, int]]:
    """(index in the batch's columns, token before, its position, token that is predicted), sorted."""
    at = made.packing.predict_O
    columns = (made.trained_R, made.token_T[at], made.packing.position_T[at], made.target_O)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("rows", [range(12), [0, 1, 2], [5, 0, 11, 3], [0, 4, 8]], ids=str)
@pytest.mark.parametrize("tp", [1, 4])
def test_what_is_predicted_is_the_same(rows: list[int], tp: int) -> None:
    whole, shared = packed(list(rows), share=False, tp=tp), packed(list(rows), share=True, tp=tp)
    assert predicted(shared) == predicted(whole)
    assert len(shared.token_T) % tp == 0 and shared.num_seqs == whole.num_seqs


def test_a_prompt_stands_once_without_its_last_token() -> None:
    block = grouped_block()
    made = packed(list(range(4)), share=True)
    [shared] = made.packing.shared
    assert shared.prompt == 5 and sum(count for count, _ in shared.answers) == 4
    assert made.token_T[:5].tolist() == block.token_T[:5].tolist()
    lengths = [length for count, length in shared.answers for _ in range(count)]
    starts = np.cumsum([5, *lengths[:-1]])
    assert made.token_T[starts].tolist() == [int(block.token_T[5])] * 4
    assert made.packing.position_T[starts].tolist() == [5] * 4
    assert made.packing.runs == ()


def test_trajectories_are_numbered_in_the_order_of_their_answers() -> None:
    block, rows = grouped_block(), [8, 0, 4, 1, 10]
    made = packed(rows, share=True)
    trajectory_of = {
        int(index): n
        for n in rows
        for index in PackedBatch(grouped_batch([]), CPU, TokenPartition()).trained([n])[0]
    }
    found = {(int(s), trajectory_of[int(u)]) for s, u in zip(made.seq_R, made.trained_R)}
    assert len(found) == len(rows) and {s for s, _ in found} == set(range(len(rows)))
    assert len(block) == 12


def test_alone_and_one_token_prompts_are_whole() -> None:
    shared = packed([0, 4, 5, 6, 8, 9], share=True).packing  # row 9 is not trained on
    whole = packed([0, 4, 5, 6, 8, 9], share=False).packing
    assert shared.shared == () and shared.runs == whole.runs
    torch.testing.assert_close(shared.position_T, whole.position_T)


def test_prompts_of_equal_tokens_are_one_whatever_their_group() -> None:
    prompts = [np.array(p) for p in ([1, 2, 3], [1, 2, 4], [1, 2, 3], [1, 2, 3])]
    start, length = np.array([0, 10, 20, 30]), np.array([5, 4, 4, 5])
    found = sharing(np.arange(4), start, length, prompts, 100 + start)
    assert found.shared == (SharedPrompt(2, ((1, 2), (2, 3)), (120, 100, 130)),)
    assert found.order_S.tolist() == [2, 0, 3, 1]
    assert found.trajectory_G.tolist() == [2, 2, 0, 3, 1] and found.start_G.tolist() == [20, 22, 2, 32, 10]
    assert found.length_G.tolist() == [2, 2, 3, 3, 4] and found.seq_G.tolist() == [0, 0, 1, 2, 3]
