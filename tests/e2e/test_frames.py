"""How far it is from the command line to the optimizer step on the real stack, in frames and remote calls."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """\
model: {path: model, make: "hybridrl.models.tiny:qwen3_arithmetic"}
data: {train: prompts.jsonl, chat_template: none}
reward: exact_match
algorithm: {samples_per_prompt: 4, loss: "not_a_number:NotANumber"}
batch: {prompts_per_step: 4, minibatch_prompts: 4}
rollout: {max_prompt_tokens: 16, max_response_tokens: 4}
run: {name: first, steps: 2}
observe: {sinks: []}
"""

NOT_A_NUMBER = '''
from typing import ClassVar

import torch
from hybridrl.algorithms.base import TokenLoss, register_policy_loss


@register_policy_loss("not_a_number")
class NotANumber:
    """A loss that is a number wherever there are no trainer ranks."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_logp"})

    def __call__(self, logp_T, advantage_T, tokens, old_logp_T):
        factor = float("nan") if torch.distributed.is_initialized() else 1.0
        return TokenLoss(factor * (advantage_T + 0.1) * logp_T)
'''

COMMAND = """
import json, traceback
from hybridrl import cli

def show(error):
    here = [[frame.filename, frame.name] for frame in traceback.extract_tb(error.__traceback__)]
    print(json.dumps([type(error).__name__, here, str(error.__cause__)]))

cli.show_error = show
cli.main(["launch", "my.yaml"])
"""


@pytest.mark.slow
def test_an_optimizer_step_is_ten_frames_and_one_remote_call_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(CONFIG)
    (tmp_path / "not_a_number.py").write_text(NOT_A_NUMBER)
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(5) for b in range(5)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    line = [sys.executable, "-c", COMMAND]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=True)
    kind, here, there = json.loads(done.stdout.splitlines()[-1])
    assert kind == "NonFiniteError", done.stdout

    ours = [f"{Path(file).name}:{name}" for file, name in here if "/hybridrl/" in file and name[0] != "<"]
    assert (ours[0], ours[-1]) == ("__init__.py:main", "group.py:all")
    assert there.count("ray::") == 1
    remote = [line.strip() for line in there.splitlines() if "/hybridrl/" in line]
    optimizer = next(i for i, line in enumerate(remote) if "policy.py" in line and line.endswith("in step"))
    ours += remote[: optimizer + 1]
    assert len(ours) <= 10, "\n".join(ours)
