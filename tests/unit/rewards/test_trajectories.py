"""From token columns to scores."""

from dataclasses import replace

import numpy as np
import pytest

from hybridrl.batch import TokenBlock
from hybridrl.rewards.score import Score
from hybridrl.rewards.trajectories import seen_texts, seen_tokens, transcript, with_turns
from hybridrl.types import Trajectory


def decode(token_ids):
    return ["".join(map(chr, ids)) for ids in token_ids]


def block_of(*answers):
    texts = [[ord(c) for c in answer] for answer in answers]
    return TokenBlock.from_answers([[1, 2]] * len(texts), texts, [[0.0] * len(t) for t in texts], version=0)


def test_chosen_rows_are_decoded_and_scored_in_order(scorer):
    texts = seen_texts(block_of("a", "bb", "c"), [2, 1], decode)
    assert texts == ["c", "bb"]
    scores = scorer("exact_match").judged(texts, [{"answer": "c"}, {"answer": "x"}], ["train/5", "train/6"])
    assert scores == [Score(1.0, {}), Score(0.0, {})]


def test_tokens_that_the_policy_did_not_write_are_left_out():
    block = block_of("abcd")
    mask = block.loss_mask_T.copy()
    mask[3:5] = False
    assert decode([seen_tokens(replace(block, loss_mask_T=mask), 0, "all_turns")]) == ["ad"]


def test_an_empty_answer_is_an_empty_text():
    assert seen_texts(block_of(""), [0], decode) == [""]


def episodes(*turns_of):
    """A block whose rows have the prompt "?", and turns "ab", ... with "(x)" read between them."""
    texts, masks, starts, at = [], [], [], 0
    for turns in turns_of:
        at += 1
        texts.append("?"), masks.append([False])
        for said, read in turns:
            starts.append(at)
            texts.append(said + read), masks.append([True] * len(said) + [False] * len(read))
            at += len(said + read)
    start_N = np.cumsum([0, *(1 + sum(len(a + b) for a, b in turns) for turns in turns_of)])
    return TokenBlock(
        np.array([ord(c) for c in "".join(texts)], np.int32),
        start_N,
        np.ones(len(turns_of), np.int32),
        np.concatenate(masks).astype(bool),
        {"turn_start": np.array(starts, np.int64)},
    )


EPISODES = episodes([("ab", "(x)"), ("c", "")], [], [("d", "")])


@pytest.mark.parametrize(
    ("sees", "texts"),
    [
        ("last_turn", ["c", "", "d"]),
        ("all_turns", ["abc", "", "d"]),
        ("transcript", ["ab(x)c", "", "d"]),
    ],
)
def test_what_a_reward_sees_of_an_episode(sees, texts):
    assert seen_texts(EPISODES, [0, 1, 2], decode, sees) == texts


def test_a_transcript_shows_turns_and_what_was_read_between_them():
    assert transcript(EPISODES, 0, decode) == (("turn 1", "ab"), ("read", "(x)"), ("turn 2", "c"))
    assert transcript(EPISODES, 1, decode) == transcript(block_of("a"), 0, decode) == ()


def test_rewards_of_turns_are_added_to_the_score():
    one = Trajectory(0, 1, 1, 1, "stop", 0, turn_reward=0.5, ended="done")
    assert with_turns(one, Score(1.0, {"right": 1.0})) == (1.5, {"right": 1.0, "environment": 0.5})
    alone = Trajectory(0, 1, 1, 1, "stop", 0)
    assert with_turns(alone, Score(1.0, {})) == (1.0, {})
