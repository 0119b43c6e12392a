"""rollouts.jsonl: a few trajectories of a run token by token, for the report. One line is one trajectory.

A token is [text, kind, advantage, difference]: kind 0 is the prompt, 1 what the policy generated and trains
on, 2 what it read in between. The difference is the trainer's log-probability minus the engine's. A long
trajectory keeps its two ends, and says how many tokens are left out. The placeholders of a picture are one
token with their number: "<|image_pad|> x 256".
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from hybridrl.batch import Batch
from hybridrl.config.files import atomic_write
from hybridrl.observe.samples import Columns, question
from hybridrl.observe.thumbnails import thumbnails
from hybridrl.types import InspectedTrajectory, Prompt, Trajectory, in_row

ROLLOUTS_FILE = "rollouts.jsonl"

PROMPT, TRAINED, READ = 0, 1, 2

_FIRST, _LAST = 400, 200
"""Tokens that a long trajectory keeps, from its beginning and from its end."""

_STEP = re.compile(r'\{"step": (\d+),')

Pieces = Callable[[Sequence[int]], list[str]]
"""The text of each of some token ids."""


def as_numbers(token_ids: Sequence[int]) -> list[str]:
    """Token ids as text, where no tokenizer is at hand."""
    return [f"{token} " for token in token_ids]


def rollout_of(
    batch: Batch,
    found: InspectedTrajectory,
    trajectory: Trajectory,
    *,
    prompt: Prompt,
    columns: Columns,
    why: Sequence[str],
    pieces: Pieces,
) -> dict[str, Any]:
    """A line of the file. "step" is its first key, so that lines can be found without parsing them."""
    gold = in_row(prompt.row, columns.answer)
    advantage = None if batch.advantage_N is None else _short(batch.advantage_N[found.index])
    tokens = list(_counted(_tokens(found, pieces)))
    left_out = max(0, len(tokens) - _FIRST - _LAST)
    return {
        "step": batch.step,
        "why": list(why),
        "uid": prompt.uid,
        "reward": _short(batch.reward_N[found.index]),
        "parts": {name: _short(part) for name, part in trajectory.reward_parts.items()},
        "advantage": advantage,
        "finish": trajectory.ended or trajectory.finish,
        "version": trajectory.version,
        "turns": trajectory.turns,
        "prompt": question(prompt, columns.prompt),
        **({"pictures": small} if (small := thumbnails(prompt.pictures)) else {}),
        "gold": None if gold is None else str(gold),
        "num_tokens": len(found.token_ids),
        "left_out_after": _FIRST if left_out else None,
        "left_out": left_out,
        "tokens": [*tokens[:_FIRST], *tokens[-_LAST:]] if left_out else tokens,
    }


def _counted(tokens: Iterable[list[Any]]) -> Iterator[list[Any]]:
    """Special tokens that were not trained on: equal ones in a row are one with their number."""
    for (text, kind), same in groupby(tokens, key=lambda token: token[:2]):
        found = list(same)
        special = kind != TRAINED and text.startswith("<") and text.endswith(">")
        yield from [[f"{text} x {len(found)}", kind, None, None]] if special and len(found) > 1 else found


def _tokens(found: InspectedTrajectory, pieces: Pieces) -> Iterator[list[Any]]:
    at = 0
    for i, (text, trained) in enumerate(zip(pieces(found.token_ids), found.trained, strict=True)):
        advantage = gap = None
        if trained:
            advantage = found.advantage and _short(found.advantage[at])
            if found.old_logp is not None and found.rollout_logp is not None:
                gap = _short(found.old_logp[at] - found.rollout_logp[at])
            at += 1
        kind = PROMPT if i < found.prompt_tokens else TRAINED if trained else READ
        yield [text, kind, advantage, gap]


def _short(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


class RolloutFile:
    """Appends trajectories; a resumed run deletes those of later steps. The first one makes the file."""

    def __init__(self, path: Path, *, resume_step: int | None) -> None:
        if resume_step is not None and path.exists():
            kept = [line for step, line in _lines(path) if step <= resume_step]
            atomic_write(path, "".join(kept))
        self._path = path

    def write(self, rollouts: Sequence[dict[str, Any]]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(rollout) + "\n" for rollout in rollouts)


def steps(path: Path) -> list[int]:
    """The steps that the file has trajectories of, ascending."""
    return sorted({step for step, _ in _lines(path)})


def read(path: Path, wanted: Sequence[int]) -> list[dict[str, Any]]:
    """The trajectories of some steps; a line that a crash cut short is left out."""
    found = []
    for step, line in _lines(path):
        if step in wanted:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if head := _STEP.match(line):
                yield int(head[1]), line
