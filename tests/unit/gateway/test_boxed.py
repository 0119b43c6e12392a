"""Programs in boxes: they reach their endpoint and nothing else, and end with their box."""

import asyncio
import os
import socket
import time

import pytest
from box_kinds import need
from gateway_values import Policy, play_all, streams

from hybridrl.config.program import ProgramConfig
from hybridrl.gateway.server import Gateway, ServerSetup
from hybridrl.workers.turns import open_programs

HEAD = """
import json, os, socket, subprocess, sys, time, urllib.request
episode = json.loads(sys.stdin.readline())
def post(path, body):
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + path, json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]})
    with urllib.request.urlopen(request) as response:
        return json.load(response)
def ask(text):
    messages = [{"role": "user", "content": text}]
    return post("/chat/completions", {"model": "m", "messages": messages})["choices"][0]["message"]["content"]
"""


def played(folder, program, *, episodes=1, timeout_s=30.0, **keys):
    """Outcomes of episodes of a program in boxes, and how many sockets the gateway listens on afterwards."""
    need("bubblewrap")
    folder.chmod(0o755)  # a box of root has a user of its own
    (folder / "agent.py").write_text(HEAD + program)
    given = {"command": ["python3", "agent.py", "{answer}"], "folder": str(folder), "timeout_s": timeout_s}
    config = ProgramConfig.model_validate({**given, "box": True, **keys})

    async def run():
        gateway = Gateway(ServerSetup())
        await gateway.start()
        programs = await open_programs(config, gateway)
        try:
            asks = [Policy().ask for _ in range(episodes)]
            found = await play_all(gateway, programs, asks, row={"answer": 3}, timeout_s=config.timeout_s)
            return found, gateway.num_listening
        finally:
            await programs.close()
            await gateway.close()

    return asyncio.run(run())


def test_a_program_in_a_box_asks_the_policy_and_ends_by_its_exit(tmp_path):
    program = "assert sys.argv[1:] == ['3'] and episode['row'] == {'answer': 3}; assert ask('q') == 're 1'"
    outcomes, listening = played(tmp_path, program, episodes=4)
    assert [outcome.failure for outcome in outcomes] == [""] * 4
    assert [streams(outcome) for outcome in outcomes] == [["<u>q<p>re 1."]] * 4
    assert listening == 1  # the boxes' sockets are closed


def test_it_sees_its_folder_and_neither_other_files_nor_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("OWN_SECRET", "s")
    monkeypatch.setenv("LISTED", "l")
    program = f"""
assert os.listdir() == ["agent.py"] and os.environ["LISTED"] == "l"
assert "OWN_SECRET" not in os.environ and not os.path.exists({os.getcwd()!r} + "/pyproject.toml")
open("/tmp/notes", "w").write("its own")
post("/done", {{"reward": 0.5}})
"""
    (outcome,), _ = played(tmp_path, program, variables=["LISTED"])
    assert outcome.failure == "" and outcome.played.ended == "done"


def test_it_reaches_no_other_port_of_the_machine(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        program = f"socket.create_connection(('127.0.0.1', {other.getsockname()[1]}))"
        (outcome,), _ = played(tmp_path, program)
    assert outcome.played.ended == "failed" and "ConnectionRefusedError" in outcome.failure


def test_a_call_of_done_ends_the_box_and_all_that_it_started(tmp_path):
    program = """
subprocess.Popen(["sleep", "300"], start_new_session=True)
ask("q"); post("/done", {"reward": 0.75}); time.sleep(300)
"""
    began = time.monotonic()
    (outcome,), listening = played(tmp_path, program)
    assert time.monotonic() - began < 60 and listening == 1
    assert outcome.played.ended == "done" and outcome.played.streams[0].turns[-1].reward == 0.75


def test_the_deadline_ends_the_box_with_what_the_episode_has(tmp_path):
    (outcome,), _ = played(tmp_path, "ask('q'); time.sleep(300)", timeout_s=2.0)
    assert outcome.played.ended == "deadline" and streams(outcome) == ["<u>q<p>re 1."]


@pytest.mark.parametrize(
    ("program", "box", "why"),
    [
        ("sys.exit('no such page')", {}, "python3 ended with exit code 1: ...no such page"),
        ("x = bytearray(400 << 20)", {"memory_mb": 256}, "MemoryError"),
        ("while True: pass", {"cpu_s": 1}, "used its processor time"),
    ],
)
def test_a_program_that_fails_says_why(tmp_path, program, box, why):
    (outcome,), _ = played(tmp_path, program, box=box)
    assert outcome.played.ended == "failed" and why in outcome.failure
    assert outcome.sums["episodes/retried"] == 3
