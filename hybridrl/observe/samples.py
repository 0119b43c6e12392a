"""samples.txt: a few rollouts of a run as readable text.

step 10   train/17   reward 1.0   advantage +0.61   stop after 2 tokens
  prompt | 7+5=
  answer | 2
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridrl.batch import Batch
from hybridrl.config.files import atomic_write
from hybridrl.types import Finish, Prompt
from hybridrl.wording import counted


@dataclass(frozen=True, slots=True)
class Sample:
    """One rollout."""

    uid: str
    prompt: str
    answer: str
    reward: float
    advantage: float | None
    """Advantage of the trajectory. None: the estimator gives one per token."""

    finish: Finish
    response_tokens: int


def samples_of(batch: Batch, prompt_field: str) -> list[Sample]:
    """The trajectories of a batch whose answer was kept as text."""
    found, position = [], 0
    for group in batch.groups:
        for trajectory in group.trajectories:
            if trajectory.text is not None:
                advantage = None if batch.advantage_N is None else float(batch.advantage_N[position])
                found.append(
                    Sample(
                        group.prompt.uid,
                        question(group.prompt, prompt_field),
                        trajectory.text,
                        float(batch.reward_N[position]),
                        advantage,
                        trajectory.finish,
                        trajectory.response_tokens,
                    )
                )
            position += 1
    return found


def question(prompt: Prompt, prompt_field: str) -> str:
    """The text of a prompt in its data set, before the chat template; if it is a list of messages, the last
    one."""
    value: Any = prompt.row.get(prompt_field, "")
    if isinstance(value, (list, tuple)) and value and isinstance(value[-1], dict):
        value = value[-1].get("content", "")
    return str(value)


class SampleFile:
    """Appends samples to samples.txt; a resumed run deletes those of later steps."""

    def __init__(self, path: Path, *, resume_step: int | None) -> None:
        if resume_step is not None and path.exists():
            atomic_write(
                path, "".join(_kept_blocks(path.read_text(encoding="utf-8", errors="replace"), resume_step))
            )
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, samples: list[Sample]) -> None:
        self._file.writelines(_block(step, sample) for sample in samples)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def verdict(sample: Sample) -> str:
    advantage = "" if sample.advantage is None else f"   advantage {sample.advantage:+.2f}"
    reward = f"{sample.reward:.3f}".rstrip("0")
    return f"reward {reward}0{advantage}" if reward.endswith(".") else f"reward {reward}{advantage}"


def printable(line: str) -> str:
    """A line without control characters: a model can sample an escape sequence, which a terminal would
    obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line.expandtabs(4))


def _block(step: int, sample: Sample) -> str:
    end = {"stop": "stop", "length": "cut", "abort": "aborted"}[sample.finish]
    head = (
        f"step {step}   {sample.uid}   {verdict(sample)}   {end} after "
        f"{counted(sample.response_tokens, 'token')}\n"
    )
    return f"{head}{_quoted('prompt', sample.prompt)}{_quoted('answer', sample.answer)}\n"


def _quoted(label: str, text: str) -> str:
    lines = text.splitlines() or [""]
    return "".join(f"  {label if i == 0 else '':6} | {printable(line)}\n" for i, line in enumerate(lines))


def _kept_blocks(text: str, last_step: int) -> Iterator[str]:
    for block in re.split(r"(?m)^(?=step \d)", text):
        step = re.match(r"step (\d+)", block)
        if step and int(step[1]) <= last_step:
            yield block
