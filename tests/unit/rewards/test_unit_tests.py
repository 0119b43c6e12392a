"""Programs are judged by the tests of their rows, in boxes: they see neither what is expected nor the
verdict."""

import json

import pytest
from box_kinds import need

from hybridrl.errors import ConfigError
from hybridrl.rewards.plugin import load_reward
from hybridrl.rewards.rules import unit_tests
from hybridrl.rewards.rules._boxed import same_text, same_value
from hybridrl.rewards.rules._tests import Asserts, Call, Program, read_tests
from hybridrl.rewards.rules.unit_tests import program
from hybridrl.rewards.score import read_score


@pytest.fixture(scope="module", autouse=True)
def closed():
    """Boxes wait ahead for the next answer."""
    need("bubblewrap", "landlock")
    yield
    for judge in unit_tests._judges.values():
        judge.close()
    unit_tests._judges.clear()


def judge(code, row, **options):
    reward = load_reward("unit_tests", options, where="")
    row = row if isinstance(row, dict) and "answer" in row else {"answer": row}
    return read_score(reward(f"So:\n```python\n{code}\n```\n", row, answer_field="answer"))


ADD = {"inputs": ["1 2\n", "3 4\n", "10 -4"], "outputs": ["3\n", "7\n", "6"]}
SORT = {
    "answer": """
def check(candidate):
    x = [3, 1]
    assert candidate(x) == [1, 3]
    assert x == [1, 3]
"""
}
FORMS = {
    "APPS": (ADD, "a, b = map(int, input().split())\nprint(a + b)", "print(3)"),
    "APPS, text": (json.dumps(ADD), "print(sum(map(int, input().split())))", "print(input())"),
    "APPS, function": (
        {"inputs": [[[1, 2], 1], [[], 0]], "outputs": [[4], [0]], "fn_name": "f"},
        "def f(x, k): return sum(x) + k",
        "def f(x, k): return sum(x)",
    ),
    "LeetCode": (
        {"inputs": [[[1, 2]]], "outputs": [{"a": (1.0), "b": None}], "fn_name": "f"},
        "class Solution:\n    def f(self, x): return {'a': 1, 'b': None}",
        "class Solution:\n    def g(self, x): return {'a': 1, 'b': None}",
    ),
    "LiveCodeBench": (
        [{"input": "1\n", "output": "2\n", "testtype": "stdin"}],
        "print(int(input()) + 1)",
        "print(int(input()))",
    ),
    "LiveCodeBench, function": (
        {
            "answer": [{"input": "[1, 2]\n3", "output": "[3, 6]", "testtype": "functional"}],
            "metadata": '{"func_name": "scale"}',
        },
        "class Solution:\n    def scale(self, x, k): return tuple(v * k for v in x)",
        "def scale(x, k): return x",
    ),
    "MBPP": (
        ["assert f([1, 2]) == (1, 2)", "assert f([]) == ()"],
        "def f(x): return tuple(x)",
        "def f(x): return x",
    ),
    "MBPP, class": (
        ["assert Stack([1]).push(2).top() == 2", "assert len(Stack([])) == 0"],
        "class Stack:\n    def __init__(s, x): s.x = x\n    def push(s, v): s.x.append(v); return s\n"
        "    def top(s): return s.x[-1]\n    def __len__(s): return len(s.x)",
        "class Stack:\n    def __init__(s, x): pass",
    ),
    "HumanEval": (
        {**SORT, "entry_point": "f"},
        "def f(x):\n    x.sort()\n    return x",
        "def f(x): return sorted(x)",
    ),
    "exceptions": (
        "try:\n    f(0)\nexcept ZeroDivisionError:\n    pass\nelse:\n    assert False",
        "def f(x): return 1 / x",
        "def f(x): raise KeyError(x)",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_right_program_passes_and_a_wrong_one_does_not(form):
    row, right, wrong = FORMS[form]
    assert judge(right, row).reward == 1.0
    assert judge(wrong, row).reward == 0.0


def test_the_share_of_passed_cases_counts_if_it_is_asked_for():
    assert judge("print(3)", ADD, score="share").reward == pytest.approx(1 / 3)
    assert judge("print(3)", ADD, max_cases=1).reward == 1.0


CHEATS = {
    "equal to all": (
        ["assert f(1) == 3"],
        "class A:\n    def __eq__(s, o): return True\ndef f(x): return A()",
    ),
    "number equal to all": (
        ["assert f(1) == 3"],
        "class A(int):\n    def __eq__(s, o): return True\ndef f(x): return A(9)",
    ),
    "a container with it": (
        ["assert f(1) == [3]"],
        "class A:\n    def __eq__(s, o): return True\ndef f(x): return [A()]",
    ),
    "exit": (["assert f(1) == 3"], "import os\ndef f(x): os._exit(0)"),
    "exit at once": (["assert f(1) == 3"], "import os; os._exit(0)"),
    "SystemExit": (["assert f(1) == 3"], "def f(x): raise SystemExit(0)"),
    "verdict on stdout": (["assert f(1) == 3"], "print('passed'); f = print"),
    "verdict on every descriptor": (
        ["assert f(1) == 3"],
        "import os, struct, json\n"
        "t = json.dumps({'done': {'ok': True, 'value': 3, 'args': [None]}, 'sizes': []}).encode()\n"
        "def f(x):\n"
        "    for fd in range(64):\n"
        "        try: os.write(fd, struct.pack('!II', len(t), 0) + t)\n"
        "        except OSError: pass\n"
        "    return 4",
    ),
    "tests in the frames": (
        ["assert f(1) == 31415"],
        "import gc, re, sys\n"
        "def f(x):\n"
        "    held = [o for o in gc.get_objects() if isinstance(o, (dict, list, tuple))]\n"
        "    found = re.search(r'== (\\d{5})', repr(held) + repr(sys._getframe().f_back))\n"
        "    return int(found[1]) if found else 0",
    ),
    "expected output in a file": (
        {"inputs": ["1"], "outputs": ["31415926"]},
        "import subprocess\ncommand = 'grep -rlah 3141592[6] /tmp /box /proc/1 2>/dev/null; true'\n"
        "print(subprocess.run(command, shell=True, capture_output=True, text=True).stdout or 'nothing')",
    ),
    "an object of another form": (
        {"inputs": [[1]], "outputs": [3], "fn_name": "f"},
        "import sys\nframe = sys._getframe()\nwhile 'self' not in frame.f_locals: frame = frame.f_back\n"
        "frame.f_locals['self']._encode = lambda value: {'o': 5}\ndef Solution(): return 1",
    ),
    "a number beyond floats": (
        {"inputs": [[1]], "outputs": [1.5], "fn_name": "f"},
        "def f(x): return 10**400",
    ),
    "changed builtins": (
        ["assert f(1) == 3"],
        "import builtins\nbuiltins.AssertionError = type('A', (), {})\ndef f(x): return 4",
    ),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_program_that_cheats_earns_nothing(cheat):
    row, code = CHEATS[cheat]
    if cheat == "verdict on every descriptor":
        row = ["assert f(1) == 3", "assert f(2) == 31415"]  # a made-up value is an answer, not a verdict
    assert judge(code, row).reward == 0.0


@pytest.mark.parametrize(
    ("code", "row"),
    [
        ("while True: pass", ADD),
        ("import time\ndef f(x):\n    while True: pass", ["assert f(1) == 1"]),
        ("while True: pass", ["assert f(1) == 1"]),
    ],
)
def test_a_program_that_does_not_end_is_late(code, row):
    score = judge(code, row, case_s=0.3, total_s=0.5, score="share")
    assert score.reward == 0.0 and score.parts["late"] > 0


@pytest.mark.parametrize(
    ("answer", "bare", "code"),
    [
        ("```python\na\n```", False, "a\n"),
        ("```py\na\n```\ntext\n```\nb\n```", False, "b\n"),
        ("<think>```python\na\n```</think>none", False, None),
        ("<think>x</think>\n  ```python\n  b\n  ```", False, "  b\n"),
        ("```python\nnever closed", True, None),
        ("x = 1", False, None),
        ("x = 1", True, "x = 1"),
        ("", True, None),
    ],
)
def test_the_program_is_the_last_fenced_block(answer, bare, code):
    assert program(answer, bare=bare) == code


def test_an_answer_without_a_program_earns_nothing():
    reward = load_reward("unit_tests", {}, where="")
    assert reward("print(3)", {"answer": ADD}, answer_field="answer") == {
        "reward": 0.0,
        "passed": 0.0,
        "late": 0.0,
        "program": 0.0,
    }


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"answer": None}, "no tests of a known form"),
        ({"answer": 7}, "no tests of a known form"),
        ({"answer": {"inputs": ["1"], "outputs": []}}, "1 inputs and 0 outputs"),
        ({"answer": {"inputs": [], "outputs": []}}, "holds no test"),
        ({"answer": [{"input": "1"}]}, "without input and output"),
        (
            {"answer": [{"input": "1", "output": "1", "testtype": "functional"}]},
            "a functional case, and no column",
        ),
        ({"answer": "gASVCg=="}, "no Python code"),
        ({"answer": "x = 1"}, "use nothing of the answer"),
        ({"answer": {"inputs": ["[1"], "outputs": [1], "fn_name": "f"}}, "no JSON"),
    ],
)
def test_a_row_without_readable_tests_is_refused_with_the_reason(row, why):
    with pytest.raises(ValueError, match=why):
        read_tests(row, "answer")
    assert why in load_reward("unit_tests", {}, where="").fault(row, answer_field="answer")


def test_tests_are_read_as_cases():
    assert read_tests({"answer": json.dumps(ADD)}, "answer")[0] == Program("1 2\n", "3\n")
    assert read_tests({"answer": {"inputs": [["a", "b"]], "outputs": ["c"]}}, "answer") == [
        Program("a\nb", "c")
    ]
    called = {"answer": {"inputs": ["[1]\n2"], "outputs": [[3]], "fn_name": "f"}}
    assert read_tests(called, "answer") == [Call("f", [[1], 2], 3)]
    row = {
        "answer": ["assert f(g(1)) == N"],
        "test_setup_code": "from math import pi as N\ndef g(x): return x",
    }
    [found] = read_tests(row, "answer")
    assert isinstance(found, Asserts) and found.remote == ("f",)


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("3\n", "3", True),
        ("1 2 \n3", "1 2\n3\n\n", True),
        ("1.0", "1.00", True),
        ("1 2", "1\n2", False),
        ("1e400", "1e401", False),
        ("nan", "nan", True),
        ("a", "b", False),
        ("", "3", False),
    ],
)
def test_outputs_are_the_same_line_by_line(found, expected, same):
    assert same_text(found, expected) is same


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        (1, 1, True),
        (True, 1, False),
        (1, True, False),
        ((1, [2.0]), [1, [2]], True),
        ({1: "a"}, {"1": "a"}, True),
        (0.1 + 0.2, 0.3, True),
        (10**30, 10**30 + 1, False),
        (None, None, True),
        (None, 0, False),
        ("1", 1, False),
        (float("nan"), 1.0, False),
    ],
)
def test_values_are_the_same_as_json_says(found, expected, same):
    assert same_value(found, expected) is same


def test_gold_is_the_solution_of_the_row():
    row = {"answer": ADD, "code": "print(1)", "prompt": "def f():\n", "canonical_solution": "    return 1"}
    for field, text in ((None, None), ("code", "print(1)"), ("canonical_solution", "def f():\n    return 1")):
        gold = load_reward("unit_tests", {"solution_field": field}, where="").gold(row, answer_field="answer")
        assert gold == (text and f"```python\n{text}\n```")


@pytest.mark.parametrize(
    "options", [{"case_s": 9}, {"case_s": 0}, {"max_cases": 0}, {"memory_mb": 8}, {"score": "some"}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError):
        load_reward("unit_tests", options, where="")


def test_it_scores_in_the_pool_and_is_killed_with_it(scorer):
    one = scorer("unit_tests", num_workers=1)
    answer = "```python\nprint(sum(map(int, input().split())))\n```"
    assert [s.reward for s in one.score([answer, "none"], [{"answer": ADD}] * 2, ["a", "b"])] == [1.0, 0.0]
