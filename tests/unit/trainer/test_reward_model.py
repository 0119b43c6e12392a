"""Where a score is read: after the last token of every row, whatever was trained."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hybridrl.batch import TokenBlock
from hybridrl.trainer.roles.reward_model import with_place_of_score

TOKENS = st.lists(st.integers(0, 99), max_size=6)


@given(rows=st.lists(st.tuples(TOKENS.filter(len), TOKENS), min_size=1, max_size=6))
def test_every_row_gets_one_place_behind_its_tokens(rows: list[tuple[list[int], list[int]]]) -> None:
    prompts, responses = [row[0] for row in rows], [row[1] for row in rows]
    block = TokenBlock.from_answers(prompts, responses, [[-1.0] * len(r) for r in responses], 3)
    scored = with_place_of_score(block)
    assert len(scored) == len(block)
    for i, (prompt, response) in enumerate(rows):
        where = scored.row(i)
        assert scored.token_T[where][:-1].tolist() == prompt + response
        assert np.flatnonzero(scored.loss_mask_T[where]).tolist() == [len(prompt) + len(response)]
