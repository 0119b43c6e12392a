"""A user's own code that fails while a run trains: the message names it, from whichever process it comes."""

import subprocess
import sys
from pathlib import Path

import pytest

from hybridrl.models import tiny

pytestmark = pytest.mark.slow

CONFIG = """\
model: model
data: {train: rows.jsonl, chat_template: none}
reward: exact_match
rollout: {max_prompt_tokens: 16, max_response_tokens: 8}
batch: {prompts_per_step: 2}
run: {name: first, steps: 1}
observe: {sinks: []}
"""

LAB = """\
import sys

import torch

from hybridrl.algorithms.policy_losses.reinforce import Reinforce


class Loss(Reinforce):
    def __call__(self, **columns):
        if columns["logp_T"].dtype == torch.float32:  # of a run, not of a trial before it
            BODY
        return super().__call__(**columns)


def advantage(reward_N, group_N):
    raise KeyError("mine")


advantage.needs = frozenset()
"""
ENDED, RAISED = "ends the program by SystemExit: 0, at ", "raises KeyError: 'mine', at "


@pytest.mark.parametrize(
    ("key", "name", "body", "said"),
    [
        ("algorithm.loss", "Loss", "raise KeyError('mine')", f"{RAISED}{{}}:11 in __call__: raise KeyError"),
        ("algorithm.loss", "Loss", "sys.exit(0)", f"{ENDED}{{}}:11 in __call__: sys.exit(0)"),
        ("algorithm.estimator", "advantage", "pass", f"{RAISED}{{}}:16 in advantage: raise KeyError"),
    ],
)
def test_own_code_that_fails_in_a_step_is_named(
    tmp_path: Path, key: str, name: str, body: str, said: str
) -> None:
    (tmp_path / "my.yaml").write_text(CONFIG)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    (tmp_path / "lab.py").write_text(LAB.replace("BODY", body))
    tiny.qwen3_arithmetic(tmp_path / "model", 0)
    line = [sys.executable, "-m", "hybridrl", "launch", "my.yaml", f"{key}=lab:{name}"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"error: {key} = lab:{name} {said.format(tmp_path / 'lab.py')}" in done.stderr
    assert "hybridrl itself" not in done.stderr
