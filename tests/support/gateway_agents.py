"""Programs as agents for tests: each row says which of them plays it. Many episodes at the same time.

plain       three turns with OpenAI's client, the second one as a stream
compacts    as plain, and begins again with a summary of it
retries     as plain, but gives up early and repeats its requests
rewinds     as plain, and asks something else after the first answer
anthropic   three turns with Anthropic's client

An episode earns 1, or, in a row with `pays`, a share that depends on what the policy said.
"""

import json
import os
import sys
import threading
from typing import Any

import anthropic
import openai

OPENAI = openai.OpenAI(api_key="of each episode", max_retries=2, timeout=300)
ANTHROPIC = anthropic.Anthropic(api_key="of each episode", max_retries=2, timeout=300)

Messages = list[dict[str, Any]]


def say(client: openai.OpenAI, messages: Messages, *, stream: bool = False) -> str:
    asked: dict[str, Any] = {"model": "policy", "messages": messages}
    if not stream:
        return client.chat.completions.create(**asked).choices[0].message.content or ""
    chunks = client.chat.completions.create(**asked, stream=True)
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def talk(client: openai.OpenAI, messages: Messages, turns: int = 3, *, streams: bool = True) -> Messages:
    for turn in range(turns):
        text = say(client, messages, stream=streams and turn % 2 == 1)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": f"go on {turn}"}]
    return messages


def with_anthropic(client: anthropic.Anthropic, messages: Messages) -> Messages:
    for turn in range(3):
        asked: dict[str, Any] = {"model": "policy", "max_tokens": 1000, "messages": messages}
        if turn % 2:
            with client.messages.stream(**asked) as events:
                found = events.get_final_message()
        else:
            found = client.messages.create(**asked)
        text = "".join(block.text for block in found.content if block.type == "text")
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": f"go on {turn}"}]
    return messages


def play(episode: dict[str, Any]) -> None:
    url, key = episode["base_url"], episode["key"]
    client, kind = OPENAI.with_options(base_url=url, api_key=key), episode["row"]["kind"]
    if kind == "anthropic":
        own = ANTHROPIC.with_options(base_url=url.removesuffix("/v1"), api_key=key)
        history = with_anthropic(own, list(episode["messages"]))
    else:
        hasty = client.with_options(timeout=0.5, max_retries=1000)
        retries = kind == "retries"  # a client repeats no stream that has begun
        history = talk(hasty if retries else client, list(episode["messages"]), streams=not retries)
        if kind == "compacts":
            talk(client, [{"role": "user", "content": f"a summary of {len(history)} messages"}], 1)
        if kind == "rewinds":
            talk(client, [*history[:2], {"role": "user", "content": "something else"}], 1)
    said = "".join(message["content"] for message in history if message["role"] == "assistant")
    reward = len(said) % 7 / 7 if episode["row"].get("pays") else 1.0
    client.post("/done", cast_to=object, body={"reward": reward})


def failed(error: threading.ExceptHookArgs) -> None:
    """End the process, so that the run shows the error."""
    threading.__excepthook__(error)
    os._exit(1)


if __name__ == "__main__":
    threading.excepthook = failed
    for line in sys.stdin:
        threading.Thread(target=play, args=(json.loads(line),), daemon=True).start()
