"""What `hybridrl reward check` finds in rewards that have one fault each."""

import pytest

from hybridrl.config.schema import RewardConfig
from hybridrl.rewards import trial
from hybridrl.rewards.hostile import HOSTILE, around
from hybridrl.rewards.trial import try_reward

ROWS = [{"prompt": f"{n}+{n}=", "answer": str(2 * n)} for n in range(5, 25)]

RIGHT = 'float(answer == row["answer"])'
SHARES_A_FILE = f"""
import os, time
def f(answer, row):
    try:
        os.close(os.open("lock", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return 0.0
    time.sleep(0.005)
    os.unlink("lock")
    return {RIGHT}
"""
WAITS = """
import time
def f(answer, row):
    time.sleep(9 * (answer == 'True'))
    return 0.5
f.hang_score = 0.0
"""
FAULTS = {
    "none": (f"def f(answer, row): return {RIGHT}", {}),
    "leak": (
        f'held = []\ndef f(answer, row):\n    held.append("x" * 50_000)\n    return {RIGHT}',
        {"leaks": "warning"},
    ),
    "files": (
        f"held = []\ndef f(answer, row):\n    held.append(open('/dev/null'))\n    return {RIGHT}",
        {"leaks": "warning"},
    ),
    "state": (
        f"calls = []\ndef f(answer, row):\n    calls.append(1)\n    return {RIGHT} / len(calls)",
        {"repeat": "warning", "at once": "no"},
    ),
    "accepts all": (
        "def f(answer, row): return 1.0",
        {"shuffled": "warning", "empty": "warning", "exploit": "warning", "truncated": "warning"},
    ),
    "beginnings": (
        'def f(answer, row): return float(row["answer"].startswith(answer))',
        {"empty": "warning", "truncated": "warning"},
    ),
    "raises": (
        'def f(answer, row): return float(int(answer) == int(row["answer"]))',
        {"empty": "no", "hostile": "no"},
    ),
    "dies": (
        f"import os\ndef f(answer, row):\n    if len(answer) > 5: os._exit(3)\n    return {RIGHT}",
        {"hostile": "no"},
    ),
    "eats": (
        f"def f(answer, row):\n    held = [answer] * (2000 * len(answer))\n    return {RIGHT}",
        {"hostile": "no"},
    ),
    "waits": (
        f"import time\ndef f(answer, row):\n    time.sleep(9 * (len(answer) > 9))\n    return {RIGHT}",
        {"hostile": "no"},
    ),
    "wrong column": ('def f(answer, row): return float(answer == row["prompt"])', {"gold": "warning"}),
    "shares a file": (SHARES_A_FILE, {"at once": "no"}),
}


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "_LEAK_CALLS", 100)
    monkeypatch.setattr(trial, "_LEAK_S", 0.5)
    monkeypatch.setattr(trial, "AT_ONCE", 8)
    monkeypatch.setattr(trial, "_MOST_FAILURES", 2)


def findings(name, **keys):
    limits = {"timeout_s": 0.5, "memory_gb": 0.5}
    reward = RewardConfig.model_validate({"name": name, **limits, **keys})
    return list(try_reward(reward, ROWS, where="my.yaml:3", sample=10))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_no_other(module, fault):
    code, expected = FAULTS[fault]
    found = findings(f"{module(code)}:f")
    assert {f.kind: f.verdict for f in found if f.verdict != "ok"} == expected, found


def test_the_findings_name_rows_answers_and_lines(module):
    code = 'def f(answer, row):\n    1 / len(answer)\n    return float(answer in ("10", row["answer"]))'
    name = module(code)
    found = {f.kind: f.text for f in findings(f"{name}:f")}
    assert found["gold"] == "accepts 100% of 10 right answers"
    assert "ZeroDivisionError" in found["empty"] and f"{name}.py:2" in found["empty"]
    assert found["shuffled"] == "accepts 10% of 10 answers of another row; as row 19: '10'"


def test_a_share_of_right_answers_is_asked_for(module):
    name = f"{module('def f(answer, row): return 0.0')}:f"
    gold = next(f for f in findings(name, min_gold=0.9) if f.kind == "gold")
    assert gold.verdict == "no" and gold.text.startswith(
        "accepts 0% of 10 right answers; a launch asks for 90%"
    )


def test_answers_that_hang_are_no_fault_of_a_reward_that_says_so(module):
    found = {f.kind: (f.verdict, f.text) for f in findings(f"{module(WAITS)}:f", timeout_s=0.1)}
    assert found["hang"] == ("ok", "not judged within 0.1 s and 0.5 GB, and given the hang_score: True")
    assert found["hostile"][0] == "ok"


def test_hostile_answers_are_long_and_many():
    assert len(HOSTILE) >= 40 and sum(len(answer) >= 50_000 for answer in HOSTILE.values()) >= 15
    assert all(len(answer) >= 5_000 and "7" in answer for answer in around("7").values())
