"""Open questions: one of several references, in the form in which people write it."""

import pytest

from hybridrl.rewards.rules.qa_match import QAMatch

ROW = {"answer": {"target": ["The Eiffel Tower", "Eiffel tower, Paris"]}}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("<answer>eiffel tower</answer>", 1),
        ("<answer> An Eiffel  Tower. </answer>", 1),
        ("<answer>Eiffel Tower Paris</answer>", 1),
        ("<answer>tower</answer>", 0),
        ("eiffel tower", 0),
        ("<answer>tower</answer> <answer>the Eiffel Tower</answer>", 1),
    ],
)
def test_the_last_answer_counts(answer: str, right: float) -> None:
    assert QAMatch()(answer, ROW, answer_field="answer") == right


def test_the_whole_answer_may_count() -> None:
    assert QAMatch(extract=None)("the eiffel tower", {"answer": "Eiffel Tower"}, answer_field="answer") == 1


def test_its_own_answers_are_right() -> None:
    for rule in (QAMatch(), QAMatch(extract=None)):
        answer = rule.gold(ROW, answer_field="answer")
        assert answer is not None and rule(answer, ROW, answer_field="answer") == 1


@pytest.mark.parametrize("value", [None, [], [""], {"target": []}, 3])
def test_a_row_without_references_is_named(value: object) -> None:
    with pytest.raises(ValueError, match="neither a text nor a list"):
        QAMatch().check_row({"answer": value}, answer_field="answer")
