"""From token columns to scores."""

from dataclasses import replace

from hybridrl.batch import TokenBlock
from hybridrl.rewards.trajectories import answer_tokens, score_block
from hybridrl.types import Prompt


def decode(token_ids):
    return ["".join(map(chr, ids)) for ids in token_ids]


def block_of(*answers):
    texts = [[ord(c) for c in answer] for answer in answers]
    return TokenBlock.from_answers([[1, 2]] * len(texts), texts, [[0.0] * len(t) for t in texts], version=0)


def test_chosen_rows_are_decoded_and_scored_in_order(scorer):
    prompts = [Prompt("train/5", (1, 2), {"answer": "c"}), Prompt("train/6", (1, 2), {"answer": "x"})]
    scores, texts = score_block(block_of("a", "bb", "c"), [2, 1], prompts, decode, scorer("exact_match"))
    assert texts == ["c", "bb"]
    assert [score.reward for score in scores] == [1.0, 0.0]


def test_tokens_that_the_policy_did_not_write_are_left_out():
    block = block_of("abcd")
    mask = block.loss_mask_T.copy()
    mask[3:5] = False
    assert decode([answer_tokens(replace(block, loss_mask_T=mask), 0)]) == ["ad"]


def test_an_empty_answer_is_an_empty_text(scorer):
    prompts = [Prompt("train/0", (1, 2), {"answer": "b"})]
    assert score_block(block_of(""), [0], prompts, decode, scorer("exact_match"))[1] == [""]
