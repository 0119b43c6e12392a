"""Token blocks carry declared columns of any name, each with what it belongs to."""

import pickle
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridrl import columns
from hybridrl.batch import RankBatch, TokenBlock
from hybridrl.columns import COLUMNS, ColumnSpec
from hybridrl.errors import ColumnError

MOOD = ColumnSpec("token", "int64", "block", "a number of each token", outside=-7)
GOAL = ColumnSpec("turn", "float32", "block", "a number of each turn")
PICTURE = ColumnSpec("prompt", "float32", "block", "what the question shows", axes="PC")


@pytest.fixture(autouse=True)
def declared() -> Iterator[None]:
    before = dict(COLUMNS)
    for name, spec in {"mood": MOOD, "goal": GOAL, "picture": PICTURE}.items():
        columns.declare(name, spec)
    yield
    COLUMNS.clear()
    COLUMNS.update(before)


def answers(turns: list[list[int]]) -> TokenBlock:
    """Trajectories of turns: two tokens of the environment, then as many of the policy as the turn says."""
    mask = [[i >= 2 for n in sizes for i in range(n + 2)] for sizes in turns]
    mask_T = np.array([trained for row in mask for trained in row], bool)
    start_N = np.concatenate([[0], np.cumsum([len(row) for row in mask], dtype=np.int64)])
    index_T = np.arange(len(mask_T))
    turn_start = np.cumsum([0, *(n + 2 for sizes in turns for n in sizes)], dtype=np.int64)[:-1]
    found = {
        "mood": np.where(mask_T, 10 + index_T, -7),
        "turn_start": turn_start,
        "goal": np.arange(len(turn_start), dtype=np.float32),
    }
    return TokenBlock(index_T.astype(np.int32), start_N, np.full(len(turns), 2, np.int32), mask_T, found)


def with_pictures(block: TokenBlock, samples: int) -> TokenBlock:
    """Each `samples` neighbours answer the same prompt, whose picture is of a size of its own."""
    pictures = np.empty(len(block), object)
    for first in range(0, len(block), samples):
        picture = np.full((first + 50, 3), first, np.float32)
        for row in range(first, min(first + samples, len(block))):
            pictures[row] = picture
    return replace(block, columns={**block.columns, "picture": pictures})


BLOCK = [[1, 2], [3], [2, 1, 1]]


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=4))
def test_trained_tokens_have_what_belongs_to_their_turn(turns: list[list[int]]) -> None:
    block, sizes = answers(turns), [size for row in turns for size in row]
    np.testing.assert_array_equal(block.trained("goal"), np.repeat(np.arange(len(sizes)), sizes))
    np.testing.assert_array_equal(block.trained("mood"), block.columns["mood"][block.loss_mask_T])


def test_samples_share_the_array_of_their_prompt_wherever_they_go() -> None:
    block = with_pictures(answers(BLOCK), samples=2)
    for found in block, pickle.loads(pickle.dumps(block, protocol=5)):
        first, second, third = found.columns["picture"]
        assert np.shares_memory(first, second) and not np.shares_memory(first, third)


def test_a_store_holds_each_array_once_and_gives_it_without_a_copy() -> None:
    block = with_pictures(answers(BLOCK), samples=2)
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(block, protocol=5, buffer_callback=buffers.append)
    sizes = [len(buffer.raw()) for buffer in buffers]
    one, _, apart = block.columns["picture"]
    assert sizes.count(one.nbytes) == 1 and sizes.count(apart.nbytes) == 1
    arrived = pickle.loads(text, buffers=buffers)
    assert all(map(np.shares_memory, arrived.columns["picture"], block.columns["picture"]))
    assert np.shares_memory(arrived.columns["mood"], block.columns["mood"])


WRONG = {
    "undeclared": ({"whim": np.zeros(16)}, "column 'whim' is not declared"),
    "short": ({"mood": np.full(15, -7)}, "column mood has 15 values; one per token would be 16"),
    "type": ({"mood": np.full(16, -7.0)}, "column mood is of type float64, it was declared int64"),
    "axes": ({"mood": np.full((16, 2), -7)}, r"column mood has 2 axes, it was declared \[T\]"),
    "filled": ({"mood": np.full(16, 3)}, "column mood is not -7 at 12 tokens that are not trained on"),
    "scalar": ({"turns": np.ones(3, int)}, "column turns is per trajectory, which token blocks do not carry"),
    "turns": ({"turn_start": np.array([0, 9, 3])}, "turn_start does not ascend within the 16 tokens"),
    "late": ({"turn_start": np.array([0, 8])}, "before the first turn of its trajectory"),
    "copies": (
        {"picture": np.zeros((3, 2), np.float32)},
        "column picture is per prompt, and has type float32",
    ),
    "flat": ({"picture": np.array([np.zeros(1, "f4"), np.zeros(2, "f4")] * 2, object)[:3]}, "has 2 axes"),
    "pictures": ({"picture": np.array([np.zeros(1), np.zeros(2), None], object)[[0, 1, 1]]}, "float64"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_column_that_is_not_as_declared_is_refused(wrong: str) -> None:
    found, message = WRONG[wrong]
    block = answers([[1], [1], [2]])
    block = TokenBlock(
        np.zeros(16, np.int32),
        np.array([0, 4, 8, 16]),
        np.full(3, 2, np.int32),
        np.array([*[False, False, False, True] * 4]),
    )
    with pytest.raises(ColumnError, match=message):
        replace(block, columns=found)


def test_a_column_per_turn_comes_with_the_starts_of_turns() -> None:
    block = answers(BLOCK)
    lost = {name: values for name, values in block.columns.items() if name != "turn_start"}
    with pytest.raises(ColumnError, match="column goal is per turn and needs turn_start"):
        replace(block, columns=lost)


def test_what_a_block_does_not_carry_is_named() -> None:
    with pytest.raises(ColumnError, match="without column rollout_logp, with goal, mood, turn_start"):
        answers(BLOCK).trained("rollout_logp")
    with pytest.raises(ColumnError, match="picture is per prompt and has no values at tokens"):
        with_pictures(answers(BLOCK), 2).trained("picture")


def test_a_name_stands_for_one_column() -> None:
    columns.declare("mood", MOOD)
    with pytest.raises(ColumnError, match="column mood is declared twice"):
        columns.declare("mood", replace(MOOD, dtype="float32"))
    with pytest.raises(ColumnError, match="column rollout_logp is declared twice"):
        columns.declare("rollout_logp", MOOD)


def test_whoever_receives_a_batch_leaves_it_as_it_was() -> None:
    none_N = np.zeros(0, np.int64)
    batch = RankBatch(1, (), none_N, none_N, none_N, np.zeros(0, np.float32), None)
    one, two = answers(BLOCK), answers([[1]])
    received = [batch.with_blocks(blocks) for blocks in ([one], (two, one))]
    assert [found.blocks for found in received] == [(one,), (two, one)]
    assert batch.blocks == ()
