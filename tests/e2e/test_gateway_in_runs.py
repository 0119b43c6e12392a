"""Programs as agents in whole runs: the trainer gives every token of every branch the probability that the
engine sampled it with, trains on each once, and every sampled token is accounted for."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from box_kinds import need
from recipe_runs import SUPPORT, launched

from hybridrl.models.tiny import random_model

KINDS = ("plain", "compacts", "retries", "rewinds", "anthropic")
ROWS, SAMPLES, STEPS = 4, 3, 3
EPISODES = len(KINDS) * ROWS * SAMPLES

CONFIG: dict[str, Any] = {
    "model": "model",
    "data": {"train": "rows.jsonl", "prompt_field": "question"},
    "program": {
        "command": [sys.executable, str(SUPPORT / "gateway_agents.py")],
        "episodes_per_process": EPISODES,
        "max_requests": 8,
    },
    "reward": "none",
    "algorithm": {
        "estimator": "grpo",
        "aggregate": "token_mean",
        "samples_per_prompt": SAMPLES,
        "guards": "off",  # the reward here follows the length of what was said
    },
    "batch": {"prompts_per_step": len(KINDS) * ROWS, "minibatch_prompts": 10},
    "rollout": {"max_prompt_tokens": 128, "max_response_tokens": 16, "max_context_tokens": 400},
    "run": {"name": "programs", "steps": STEPS, "evaluate_every": 0, "export": False},
}


IN_A_BOX = """
import json, os, sys, urllib.error, urllib.request

episode = json.loads(sys.stdin.readline())
history = list(episode["messages"])

def post(path, body):
    asked = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + path, json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]})
    with urllib.request.urlopen(asked) as response:
        return json.load(response)

def reached(url):
    try:
        urllib.request.urlopen(url, timeout=2)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True

outside = [reached(sys.argv[1]), os.access(episode["row"]["secret"], os.R_OK)]
for turn in range(2):
    said = post("/chat/completions", {"model": "m", "messages": history})["choices"][0]["message"]
    history += [said, {"role": "user", "content": f"go on {turn}"}]
words = "".join(message["content"] for message in history if message["role"] == "assistant")
post("/done", {"reward": len(words) % 7 / 7, "metrics": {"outside": sum(outside)}})
"""
"""A program that tries a server of this machine and a file of the run, and then talks."""


def write(folder: Path, config: dict[str, Any] = CONFIG) -> None:
    random_model(folder / "model", "qwen3", 3, vocab_size=263)
    rows = [
        {"question": f"question {i}", "kind": kind, "pays": True, "secret": str(folder / "run.yaml")}
        for i in range(ROWS)
        for kind in KINDS
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["{tp: 1}", "{tp: 1, cp: 2}"], ids=["one rank", "cp 2"])
def test_every_token_of_every_branch_is_trained_once_with_its_probability(
    tmp_path: Path, parallel: str
) -> None:
    write(tmp_path)
    metrics, said = launched(tmp_path, "run.yaml", f"actor.parallel={parallel}")
    steps = [row for row in metrics if row["kind"] == "step"]
    assert len(steps) == STEPS, said
    for step in steps:
        assert step["training/rollout_logp_diff_max"] < 2e-5
        assert step["training/first_ratio_max_abs_err"] < 2e-5
        assert step["actor/grad_norm"] > 0
        trained = step["rollout/tokens/with_gradient"] + step["rollout/tokens/no_gradient"]
        assert trained > 0 and step["rollout/tokens/aborted"] == step["rollout/tokens/in_flight"] == 0
        assert trained == step["rollout/tokens/sampled"]
        assert step["episode/ended/failed"] == 0


@pytest.mark.slow
def test_a_program_in_a_box_is_trained_on_and_reaches_its_endpoint_alone(tmp_path: Path) -> None:
    need("bubblewrap")
    agents = tmp_path / "agents"
    agents.mkdir(mode=0o755)
    (agents / "agent.py").write_text(IN_A_BOX)
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = ["python3", "agent.py", f"http://127.0.0.1:{server.getsockname()[1]}"]
        program = {"command": command, "folder": str(agents), "box": True, "max_requests": 2}
        write(tmp_path, {**CONFIG, "program": program})
        metrics, said = launched(tmp_path, "run.yaml", "run.steps=2")
    steps = [row for row in metrics if row["kind"] == "step"]
    assert len(steps) == 2, said
    for step in steps:
        assert step["environment/program/outside"] == 0
        assert step["training/rollout_logp_diff_max"] < 2e-5
        assert step["rollout/tokens/with_gradient"] + step["rollout/tokens/no_gradient"] > 0
        assert step["episode/ended/failed"] == step["episode/ended/deadline"] == 0
