"""The rule rewards, called directly."""

import json
import subprocess
import sys

import pytest
import reasoning_gym as library
from reasoning_gym.factory import DATASETS

from hybridrl.rewards.plugin import load_reward


def judge(name, answer, reference, **options):
    reward = load_reward(name, options, where="")
    return reward(answer, {"answer": reference, "other": 1}, answer_field="answer")


@pytest.mark.parametrize(
    ("answer", "reference", "options", "expected"),
    [
        ("7", "7", {}, 1),
        (" 7\n", "7", {}, 1),
        (" 7\n", "7", {"strip": False}, 0),
        ("7.0", "7", {}, 0),
        ("7", 7, {}, 1),
        ("Paris", "paris", {}, 0),
        ("Paris", "paris", {"casefold": True}, 1),
        ("so it is 7", "7", {"extract": r"\d+"}, 1),
        ("first 3, no: 7", "7", {"extract": r"\d+"}, 1),
        ("Answer: 7 apples", "7", {"extract": r"Answer: (\d+)"}, 1),
        ("no number", "7", {"extract": r"\d+"}, 0),
        ("7", "3 + 4 = 7 #### 7", {"extract_reference": r"#### (.+)"}, 1),
    ],
)
def test_exact_match(answer, reference, options, expected):
    assert judge("exact_match", answer, reference, **options) == expected


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("<think>a</think>7", {"pattern": r"^<think>.*</think>"}, 1),
        ("7", {"pattern": r"^<think>.*</think>"}, 0),
        ("x = 7", {"pattern": r"x = (\d)", "group": 1}, 1),
        ("x = 3 x = 7", {"pattern": r"x = (\d)", "group": 1}, 1),
        ("x = 7 x = 3", {"pattern": r"x = (\d)", "group": 1}, 0),
        ("x = 7", {"pattern": r"x = (?P<value>\d)", "group": "value"}, 1),
        ("none", {"pattern": r"x = (\d)", "group": 1}, 0),
        ("b", {"pattern": r"(a)?b", "group": 1}, 0),
    ],
)
def test_regex(answer, options, expected):
    assert judge("regex", answer, "7", **options) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        (r"so \boxed{\frac{1}{2}}", r"\frac12", 1),
        (r"\boxed{0.5}", "1/2", 1),
        ("the answer is $0.5$", "1/2", 1),
        (r"\boxed{1}", r"\frac12", 0),
        (r"\boxed{2}", r"\frac12", 0),
        (r"\boxed{10000000000}", "10^{10}", 1),
        (r"\boxed{10}", "10^{10}", 0),
        (r"\boxed{x^2+2x+1}", "$(x+1)^2$", 1),
        (r"\boxed{(1,2)}", "(1,2)", 1),
        (r"\boxed{5}", "5 dollars", 1),
        (r"\boxed{7}", "3 + 4 gives #### 7", 1),
        (r"\boxed{\sqrt{2}}", r"\sqrt{2}", 1),
        (r"\boxed{1234}", "1,234", 1),
        (r"\boxed{B}", "B", 1),
        (r"\boxed{A}", "B", 0),
        ("72", 72, 1),
        ("I do not know", "72", 0),
        ("", "72", 0),
        (r"first \boxed{3}. After another look it turns out to be \boxed{72}", "72", 1),
        (r"\boxed{3} or \boxed{72}", "72", 0),
        (r"\boxed{1} and \boxed{2}", r"\{1, 2\}", 1),
    ],
)
def test_math_verify(answer, reference, expected):
    assert judge("math_verify", answer, reference) == expected


@pytest.mark.parametrize(
    "answer",
    [
        r"\boxed{9^{9^{9^9}}}",
        "1+" * 50_000 + "1",
        "$" + "(" * 2000 + "1" + ")" * 2000 + "$",
        r"\boxed{100000!!!}",
    ],
)
def test_an_answer_that_cannot_be_computed_earns_nothing(answer):
    assert judge("math_verify", answer, "72", cpu_limit_s=0.5) == 0


@pytest.mark.parametrize("name", ["exact_match", "math_verify"])
@pytest.mark.parametrize(
    ("reference", "options", "why"),
    [
        ([7], {}, "is a list, not text or a number"),
        (None, {}, "is null, not text or a number"),
        ("no hashes", {"extract_reference": "#### (.+)"}, "finds nothing in the reference 'no hashes'"),
    ],
)
def test_a_reference_that_no_answer_could_match_raises(name, reference, options, why):
    with pytest.raises(ValueError, match=why):
        judge(name, "7", reference, **options)


def test_a_row_without_the_answer_column_says_what_it_has():
    reward = load_reward("exact_match", {}, where="")
    with pytest.raises(ValueError, match="the row has no 'answer'; it has question, solution"):
        reward("7", {"question": "a", "solution": "7"}, answer_field="answer")


def test_weighted_sum_adds_its_parts_and_reports_each():
    parts = {
        "correct": {"name": "exact_match", "weight": 1.0, "extract": r"\[(.*)\]"},
        "format": {"name": "regex", "weight": 0.25, "pattern": r"\[.*\]"},
    }
    assert judge("weighted_sum", "[7]", "7", parts=parts) == {"reward": 1.25, "correct": 1.0, "format": 1.0}
    assert judge("weighted_sum", "[8]", "7", parts=parts) == {"reward": 0.25, "correct": 0.0, "format": 1.0}


# Of each kind of scorer: arc_agi compares with tuples in its metadata, prime_factorization raises on words.
@pytest.mark.parametrize(
    "dataset", ["chain_sum", "arc_agi", "countdown", "prime_factorization", "maze", "zebra_puzzles"]
)
def test_reasoning_gym_scores_as_the_library_does(dataset):
    puzzle = library.create_dataset(dataset, seed=1, size=1)[0]
    row = {"prompt": puzzle["question"], "data_source": dataset} | {
        k: puzzle[k] for k in ("answer", "metadata")
    }
    reward = load_reward("reasoning_gym", {}, where="")
    assert dataset in DATASETS
    assert reward(f" {puzzle['answer']} ", row, answer_field="answer") == 1.0
    assert reward("no idea", row, answer_field="answer") < 0.1


def test_reasoning_gym_reads_the_last_tag_and_nothing_without_one():
    row = {"prompt": "1 + 1 =", "answer": "2", "data_source": "chain_sum", "metadata": {}}
    reward = load_reward("reasoning_gym", {"extract_tag": "answer"}, where="")
    answers = ["<answer>3</answer> no: <answer> 2 </answer>", "2", "<answer>2</answer> <answer>3</answer>"]
    assert [reward(a, row, answer_field="answer") for a in answers] == [1.0, 0.0, 0.0]
    assert reward.gold(row, answer_field="answer") == "<answer>2</answer>"


def test_reasoning_gym_needs_rows_of_its_task():
    reward = load_reward("reasoning_gym", {}, where="")
    with pytest.raises(ValueError, match="no 'metadata': this reward scores rows of the task reasoning_gym"):
        reward("2", {"prompt": "a", "answer": "2", "data_source": "x"}, answer_field="answer")


def test_an_answer_inside_a_column_is_found_by_its_dotted_name():
    row = {"reward_model": {"ground_truth": "7", "style": "rule"}}
    for name, options in (
        ("exact_match", {}),
        ("math_verify", {}),
        ("weighted_sum", {"parts": {"right": {"name": "exact_match", "weight": 1.0}}}),
    ):
        reward = load_reward(name, options, where="")
        field = "reward_model.ground_truth"
        gold = reward.gold(row, answer_field=field)
        for answer, expected in ((gold, 1), ("8", 0)):
            scored = reward(answer, row, answer_field=field)
            assert (scored["reward"] if isinstance(scored, dict) else scored) == expected
        with pytest.raises(ValueError, match="the row has no 'reward_model.truth'"):
            reward("7", row, answer_field="reward_model.truth")


def test_a_column_with_a_dot_in_its_name_comes_first():
    row = {"a.b": "7", "a": {"b": "8"}}
    assert load_reward("exact_match", {}, where="")("7", row, answer_field="a.b") == 1


def test_no_rule_gives_nothing_and_rejects_no_reference() -> None:
    assert judge("none", "7", "7") == 0
    assert load_reward("none", {}, where="").gold({"answer": "7"}, answer_field="answer") is None


def test_options_are_checked_without_the_libraries_and_a_warm_up_imports_one() -> None:
    parts = {name: {"name": name, "weight": 1.0} for name in ("math_verify", "reasoning_gym")}
    code = f"""
import json, sys
from hybridrl.rewards.plugin import load_reward
heavy = ("math_verify", "sympy", "reasoning_gym", "torch")
load_reward("weighted_sum", {{"parts": {parts!r}}}, where="")
reward = load_reward("math_verify", {{}}, where="")
before = [name for name in heavy if name in sys.modules]
reward.warm_up()
print(json.dumps([before, [name for name in heavy if name in sys.modules]]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = json.loads(run.stdout)
    assert before == [] and after == ["math_verify", "sympy"]
