"""samples.txt: a few rollouts of a run, and answers to held-out prompts, as readable text.

step 10   train/17   reward 1.0   advantage +0.61   stop after 2 tokens
  prompt | 7+5=
  answer | 2
  gold   | 2
  parts  | right 1, short 0.5

An episode of several turns shows each turn, and what the policy read after it:

step 10   train/17   reward 1.1   advantage +0.61   done after 2 turns, 7 tokens
  prompt | =
  turn 1 | 4
  read   | +
  turn 2 | 6
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridrl.batch import Batch
from hybridrl.config.files import atomic_write
from hybridrl.types import Ended, Finish, Group, Prompt, Trajectory, in_row
from hybridrl.wording import counted

_FINISHES: dict[Finish, str] = {"stop": "stop", "length": "cut", "abort": "aborted"}


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
    reference: str | None = None
    """The right answer by the data; None: the data has none."""

    parts: Mapping[str, float] = field(default_factory=dict)
    """Named parts of the reward."""

    transcript: tuple[tuple[str, str], ...] = ()
    """(who, text) of the turns of an episode and of what was read between them; empty for one answer."""

    ended: Ended | None = None
    """Why the episode ended; None: it is one answer."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of the data that a sample shows."""

    prompt: str
    answer: str
    """Column of the reference, or a field inside a column."""


def samples_of(batch: Batch, columns: Columns) -> list[Sample]:
    """The trajectories of a batch whose answer was kept as text."""
    found, position = [], 0
    for group in batch.groups:
        for trajectory in group.trajectories:
            if trajectory.text is not None:
                advantage = None if batch.advantage_N is None else float(batch.advantage_N[position])
                reward = float(batch.reward_N[position])
                found.append(_sample(group.prompt, trajectory, reward, advantage, columns))
            position += 1
    return found


def heldout_samples(groups: Sequence[Group], columns: Columns) -> list[Sample]:
    """The answers to held-out prompts that were kept as text."""
    return [
        _sample(group.prompt, trajectory, float(trajectory.reward or 0.0), None, columns)
        for group in groups
        for trajectory in group.trajectories
        if trajectory.text is not None
    ]


def _sample(
    prompt: Prompt, trajectory: Trajectory, reward: float, advantage: float | None, columns: Columns
) -> Sample:
    assert trajectory.text is not None
    reference = in_row(prompt.row, columns.answer)
    return Sample(
        prompt.uid,
        question(prompt, columns.prompt),
        trajectory.text,
        reward,
        advantage,
        trajectory.finish,
        trajectory.response_tokens,
        None if reference is None else str(reference),
        trajectory.reward_parts,
        trajectory.transcript,
        trajectory.ended,
    )


def question(prompt: Prompt, prompt_field: str) -> str:
    """The text of a prompt in its data set, before the chat template; if it is a list of messages, the last
    one."""
    value: Any = prompt.row.get(prompt_field, "")
    if isinstance(value, (list, tuple)) and value and isinstance(value[-1], dict):
        value = value[-1].get("content", "")
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):  # texts and pictures
        value = "".join(str(part.get("text", "<image>")) for part in value)
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
    head = f"step {step}   {sample.uid}   {verdict(sample)}   {_end(sample)}\n"
    said = sample.transcript or (("answer", sample.answer),)
    lines = [_quoted("prompt", sample.prompt), *(_quoted(who, text) for who, text in said)]
    if sample.reference is not None:
        lines.append(_quoted("gold", sample.reference))
    if sample.parts:
        lines.append(_quoted("parts", ", ".join(f"{name} {part:g}" for name, part in sample.parts.items())))
    return f"{head}{''.join(lines)}\n"


def _end(sample: Sample) -> str:
    tokens = counted(sample.response_tokens, "token")
    if sample.ended is None:
        return f"{_FINISHES[sample.finish]} after {tokens}"
    turns = sum(who.startswith("turn") for who, _ in sample.transcript)
    return f"{sample.ended} after {counted(turns, 'turn')}, {tokens}"


def _quoted(label: str, text: str) -> str:
    lines = text.splitlines() or [""]
    return "".join(f"  {label if i == 0 else '':6} | {printable(line)}\n" for i, line in enumerate(lines))


def _kept_blocks(text: str, last_step: int) -> Iterator[str]:
    for block in re.split(r"(?m)^(?=step \d)", text):
        step = re.match(r"step (\d+)", block)
        if step and int(step[1]) <= last_step:
            yield block
