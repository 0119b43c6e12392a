"""Episodes that a program plays: its processes, how they end, what is left, and what becomes of failures."""

import asyncio
import os
import sys
import time

import psutil
import pytest
from gateway_values import Policy, play_all, streams

from hybridrl.environments.base import EnvironmentFailedError
from hybridrl.gateway.program import Programs, ProgramSetup
from hybridrl.gateway.server import Gateway, ServerSetup
from hybridrl.rollout.streams import packed_episodes

HEAD = """
import json, os, sys, time, urllib.request
def post(episode, path, body):
    request = urllib.request.Request(episode["base_url"] + path, json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": "Bearer " + episode["key"]})
    with urllib.request.urlopen(request) as response:
        return json.load(response)
def ask(episode, *texts):
    messages = [{"role": "user", "content": text} for text in texts]
    return post(episode, "/chat/completions", {"model": "m", "messages": messages})["choices"][0]["message"]
"""
ONE = "episode = json.loads(sys.stdin.readline())\n"
MANY = """
import threading
def start(play):
    for line in sys.stdin:
        threading.Thread(target=play, args=(json.loads(line),), daemon=True).start()
"""


def played(tmp_path, program, *, episodes=1, policy=None, command=(), row=None, timeout_s=20.0, **setup):
    """Outcomes of some episodes, and the ids of the program's processes afterwards."""
    (tmp_path / "agent.py").write_text(HEAD + program)

    async def run():
        gateway = Gateway(ServerSetup())
        await gateway.start()
        given = (sys.executable, str(tmp_path / "agent.py"), *command)
        programs = Programs(ProgramSetup(given, {"PATH": os.environ["PATH"]}, str(tmp_path), **setup))
        try:
            asks = [(policy or Policy()).ask] * episodes
            found = await play_all(gateway, programs, asks, row=row or {"answer": 3}, timeout_s=timeout_s)
            return found, programs.pids
        finally:
            await programs.close()
            await gateway.close()

    return asyncio.run(run())


def test_a_program_ends_its_episode_by_its_exit(tmp_path):
    program = (
        ONE
        + """
assert os.environ["OPENAI_BASE_URL"] == episode["base_url"] and os.environ["OPENAI_API_KEY"] == episode["key"]
assert episode["row"] == {"answer": 3} and episode["messages"] == [{"role": "user", "content": "q"}]
assert sys.argv[1:] == ["3", "{none}"] and "HOME" not in os.environ
ask(episode, "q")
"""
    )
    (outcome,), pids = played(tmp_path, program, command=("{answer}", "{none}"))
    assert outcome.failure == "" and outcome.played.ended == "done" and outcome.played.finish == "stop"
    assert streams(outcome) == ["<u>q<p>re 1."] and pids == []


def test_a_call_of_done_ends_the_episode_with_its_reward(tmp_path):
    program = (
        ONE
        + """
ask(episode, "a"); ask(episode, "b")
post(episode, "/done", {"reward": 0.75, "metrics": {"solved": 1}})
time.sleep(60)
"""
    )
    began = time.monotonic()
    (outcome,), _ = played(tmp_path, program)
    assert time.monotonic() - began < 30
    assert outcome.reported == {"solved": 1.0}
    (trajectories,), block = packed_episodes([(0, outcome.played)], 0)
    assert [t.branch for t in trajectories] == [0, 1] and [t.turn_reward for t in trajectories] == [
        0.75,
        0.75,
    ]
    assert streams(outcome) == ["<u>b<p>re 1.", "<u>a<p>re 1."]  # the newest answer first
    assert outcome.sums["gateway/branches/new"] == 1 and int(block.loss_mask_T.sum()) == 10


def test_time_that_is_over_ends_an_episode_with_what_it_has(tmp_path):
    program = (
        ONE
        + """
import subprocess
subprocess.Popen(["sleep", "60"], start_new_session=True)
ask(episode, "q")
print("it waits for a file", flush=True)
time.sleep(60)
"""
    )
    (outcome,), pids = played(tmp_path, program, timeout_s=1.5)
    assert outcome.played.ended == "deadline" and outcome.played.finish == "length"
    assert outcome.overdue == (
        "an episode reached program.timeout_s = 1.5: the program had got 1 answer and asked for no more; "
        "its output ends: ...it waits for a file"
    )
    assert streams(outcome) == ["<u>q<p>re 1."] and pids == []
    assert not [p for p in psutil.Process().children(recursive=True) if "sleep" in p.name()]


def test_a_program_that_fails_is_played_again_and_then_named(tmp_path):
    program = (
        ONE
        + """
ask(episode, "q")
print("the disk is full"); sys.exit(3)
"""
    )
    (outcome,), _ = played(tmp_path, program)
    assert "ended with exit code 3: ...the disk is full" in outcome.failure
    assert outcome.played.ended == "failed" and outcome.sums["episodes/retried"] == 3
    assert outcome.lost_tokens == 3 * len("re 1.")


def test_a_program_that_fails_once_is_played_again_with_its_seed(tmp_path):
    program = (
        ONE
        + """
open(f"seen{episode['seed']}", "a").write("x")
ask(episode, "q")
if os.path.getsize(f"seen{episode['seed']}") == 1: os.kill(os.getpid(), 9)
"""
    )
    (outcome,), _ = played(tmp_path, program)
    assert outcome.failure == "" and outcome.sums["episodes/retried"] == 1
    assert streams(outcome) == ["<u>q<p>re 1."]


def test_a_command_that_is_not_there_is_a_failure(tmp_path):
    async def run():
        programs = Programs(ProgramSetup((str(tmp_path / "absent"),), {}))
        await programs.begin({"row": {}, "base_url": "u", "key": "k"})

    with pytest.raises(EnvironmentFailedError, match="absent cannot be started"):
        asyncio.run(run())


def test_one_process_plays_many_episodes(tmp_path):
    program = (
        MANY
        + """
def play(episode):
    ask(episode, f"{os.getpid()}")
    post(episode, "/done", {"reward": episode["seed"]})
start(play)
"""
    )
    outcomes, pids = played(tmp_path, program, episodes=20, episodes_per_process=8, max_processes=3)
    assert [o.played.streams[0].turns[-1].reward for o in outcomes] == list(range(20))
    assert len(pids) == 3 and len({text for o in outcomes for text in streams(o)}) == 3


def test_a_process_that_dies_loses_its_episodes_alone_and_they_are_played_again(tmp_path):
    program = (
        MANY
        + """
def play(episode):
    ask(episode, "q")
    if not os.path.exists("died"):
        open("died", "w").close(); os._exit(1)
    post(episode, "/done", {})
start(play)
"""
    )
    outcomes, pids = played(tmp_path, program, episodes=4, episodes_per_process=4, max_processes=2)
    assert [o.failure for o in outcomes] == [""] * 4 and len(pids) == 1
    assert sum(o.sums["episodes/retried"] for o in outcomes) >= 1


def test_a_program_without_an_answer_leaves_nothing_to_train_on(tmp_path):
    (outcome,), _ = played(tmp_path, ONE)
    assert outcome.failure == "" and outcome.played.ended == "done"
    (trajectories,), block = packed_episodes([(0, outcome.played)], 0)
    assert [t.trained_tokens for t in trajectories] == [0] and not block.loss_mask_T.any()
