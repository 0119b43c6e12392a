"""Reference answers that a reward rejects are found before the run."""

import pytest

from hybridrl.config.schema import RewardConfig
from hybridrl.errors import RewardError
from hybridrl.rewards.gold import check_on_gold
from hybridrl.rewards.pool import Scorer


@pytest.fixture
def math_scorer():
    with Scorer(RewardConfig(name="math_verify")) as one:
        yield one


def rows_of(*references):
    return [{"prompt": "q", "answer": reference} for reference in references]


def test_references_that_a_rule_rejects_are_counted_and_the_first_is_shown(math_scorer):
    rows = rows_of("7", "8", "$", "9", "$", "10", "11", "12", "13", "14")
    with pytest.raises(RewardError) as caught:
        check_on_gold(math_scorer, rows, where="data/math.parquet")
    assert caught.value.what == "reward math_verify gives 0 on 20 % of the gold answers in data/math.parquet"
    assert caught.value.where == 'first: row 3, "$"'
    math_scorer.reward = math_scorer.reward.model_copy(update={"min_gold": 0.8})
    check = check_on_gold(math_scorer, rows, where="data/math.parquet")
    assert (check.num_checked, check.rejected_rows, check.accepted_share) == (10, (2, 4), 0.8)


def test_the_sample_is_spread_over_all_rows(math_scorer):
    rows = rows_of(*["7"] * 900, *["$"] * 100)
    math_scorer.reward = math_scorer.reward.model_copy(update={"min_gold": 0.0})
    check = check_on_gold(math_scorer, rows, where="d", sample=50)
    assert check.num_checked == 50
    assert check.accepted_share == 0.9


@pytest.mark.parametrize(
    ("name", "options", "reference", "checked"),
    [
        ("exact_match", {}, "7", 1),
        ("exact_match", {"extract": r"Answer: (\d+)"}, "7", 0),
        ("exact_match", {"extract": r"#### (\d+)", "extract_reference": r"#### (\d+)"}, "3 + 4 #### 7", 1),
        ("exact_match", {"extract_reference": r"#### (\d+)"}, "3 + 4 #### 7", 1),
        ("regex", {"pattern": "7"}, "7", 0),
        ("weighted_sum", {"parts": {"a": {"name": "regex", "weight": 1, "pattern": "x"}}}, "7", 0),
        ("weighted_sum", {"parts": {"a": {"name": "math_verify", "weight": 1}}}, "7", 1),
    ],
)
def test_good_references_pass_where_an_answer_can_be_made_of_them(scorer, name, options, reference, checked):
    check = check_on_gold(scorer(name, **options), rows_of(reference), where="d")
    assert (check.num_checked, check.rejected_rows) == (checked, ())


def test_references_in_every_notation_pass(math_scorer):
    rows = rows_of(
        r"\frac12", r"We find \boxed{\frac12}.", "1,234", "(1,2)", "5 dollars", r"\text{yes}", "x=5"
    )
    check = check_on_gold(math_scorer, rows, where="d")
    assert (check.num_checked, check.rejected_rows) == (7, ())


def test_what_a_function_of_the_user_returns_is_reported_but_not_judged(scorer, module):
    name = module("def f(answer, row): return 0.0")
    check = check_on_gold(scorer(f"{name}:f"), rows_of("7", "8", None), where="d")
    assert (check.num_checked, check.rejected_rows) == (2, (0, 1))


NO_GOLD = "def f(answer, row): return {}"
OWN_GOLD = """
class f:
    def __call__(self, answer, row, *, answer_field): return answer == row[answer_field]
    def gold(self, row, *, answer_field): return {}
"""


def test_a_function_that_rejects_every_reference_is_a_warning_that_shows_one(scorer, module):
    check = check_on_gold(scorer(f"{module(NO_GOLD.format('0.0'))}:f"), rows_of("7", "8"), where="d.jsonl")
    assert 'gives 0 on 100 % of the gold answers in d.jsonl  (first: row 1, "7")' in check.warning
    assert "a method gold that writes a reference in the form that it expects" in check.warning
    right = check_on_gold(scorer(f"{module(NO_GOLD.format('1.0'))}:f"), rows_of("7"), where="d.jsonl")
    assert right.warning == ""


@pytest.mark.parametrize(
    ("code", "min_gold", "refused"),
    [
        (NO_GOLD.format("0.0"), None, False),
        (NO_GOLD.format("0.0"), 0.5, True),
        (NO_GOLD.format("row['answer'] != '7'"), 0.5, False),
        (NO_GOLD.format("row['answer'] != '7'"), 0.6, True),
        (OWN_GOLD.format("row[answer_field]"), None, False),
        (OWN_GOLD.format("'it is ' + row[answer_field]"), None, True),
        (OWN_GOLD.format("'it is ' + row[answer_field]"), 0.0, False),
    ],
)
def test_a_reward_of_the_user_is_refused_below_its_share(scorer, module, code, min_gold, refused):
    one, rows = scorer(f"{module(code)}:f", min_gold=min_gold), rows_of("7", "8")
    if refused:
        with pytest.raises(RewardError, match="gives 0 on"):
            check_on_gold(one, rows, where="d")
    else:
        check_on_gold(one, rows, where="d")


@pytest.mark.parametrize("accepted", range(1, 11))
def test_the_share_that_is_asked_for_is_enough(scorer, module, accepted):
    one = scorer(f"{module(NO_GOLD.format('answer == str(7)'))}:f", min_gold=accepted / 10)
    check_on_gold(one, rows_of(*["7"] * accepted, *["8"] * (10 - accepted)), where="d")


def test_a_reference_inside_a_column_is_shown(scorer, module):
    rows, field = [{"reward_model": {"ground_truth": "$"}}], "reward_model.ground_truth"
    one = scorer(f"{module(NO_GOLD.format('0.0'))}:f", answer_field=field, min_gold=1.0)
    with pytest.raises(RewardError, match="min_gold = 1  .first: row 1, .\\$."):
        check_on_gold(one, rows, where="d")


def test_a_function_of_the_user_that_raises_on_a_reference_is_refused(scorer, module):
    name = module("def f(answer, row): return float(answer)")
    with pytest.raises(RewardError, match="raised ValueError on the gold answer of row 2 in d"):
        check_on_gold(scorer(f"{name}:f"), rows_of("7", "x"), where="d")


def test_the_wrong_column_is_named(scorer):
    with pytest.raises(RewardError, match="the row has no 'solution'; it has prompt, answer"):
        check_on_gold(scorer("exact_match", answer_field="solution"), rows_of("7"), where="d")
