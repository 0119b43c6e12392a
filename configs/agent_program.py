"""The agent of agent_program.yaml: a program of its own that plays the game lookup with OpenAI's client.

It reads a line of JSON for each episode, and plays many at the same time. The question is "7?"; the policy
may look into a register, by writing [7], and then has to say the digit that is in it.
"""

import json
import os
import re
import sys
import threading
from typing import Any

from openai import OpenAI

CLIENT = OpenAI(api_key="of each episode", timeout=30, max_retries=10)  # a repetition gets the stored answer


def play(episode: dict[str, Any]) -> None:
    client = CLIENT.with_options(base_url=episode["base_url"], api_key=episode["key"])
    history, row = list(episode["messages"]), episode["row"]

    def ask() -> str:
        found = client.chat.completions.create(model=episode["model"], messages=history)
        choice = found.choices[0]
        history.append({"role": "assistant", "content": choice.message.content})
        return choice.message.content or "" if choice.finish_reason == "stop" else ""

    said, right, reward = ask(), row["answer"], 0.0
    called = re.fullmatch(r"\[([0-9])\]", said)
    if called:
        history.append({"role": "user", "content": row["registers"][int(called[1])]})
        reward = 0.4 if int(called[1]) == row["register"] else 0.1
        said = ask()
        reward += 0.1 if re.fullmatch("[0-9]", said) and said != right else 0.0
    else:
        reward = 0.025 * sum(a in b for a, b in zip(said, ("[", "0123456789", "]"), strict=False))
    metrics = {"called": bool(called), "solved": said == right}
    client.post("/done", cast_to=object, body={"reward": reward + (said == right), "metrics": metrics})


def failed(error: threading.ExceptHookArgs) -> None:
    """End the process with an error that the run shows: an episode that just stops waits for its deadline."""
    threading.__excepthook__(error)
    os._exit(1)


threading.excepthook = failed
for line in sys.stdin:
    threading.Thread(target=play, args=(json.loads(line),), daemon=True).start()
