"""The program of benchmarks.gateway: a client of OpenAI that keeps its connections plays all."""

import json
import sys
import threading
from typing import Any

from openai import OpenAI

CLIENT = OpenAI(api_key="of each episode", timeout=600)


def play(episode: dict[str, Any]) -> None:
    client = CLIENT.with_options(base_url=episode["base_url"], api_key=episode["key"])
    history: list[Any] = list(episode["messages"])
    for turn in range(episode["row"]["turns"]):
        found = client.chat.completions.create(model="policy", messages=history)
        history.append({"role": "assistant", "content": found.choices[0].message.content})
        history.append({"role": "user", "content": f"go on {turn} " + "x" * 20})
    client.post("/done", cast_to=object, body={"reward": 1.0})


if __name__ == "__main__":
    for line in sys.stdin:
        threading.Thread(target=play, args=(json.loads(line),), daemon=True).start()
