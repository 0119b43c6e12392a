"""The step bundle: what one policy update was made of, and what came of it, in one folder.

    COMMITTED                  step, minibatches, metrics, checksums of the weights; and of all files
    saved_groups.safetensors   tokens, loss mask, log-probabilities, versions, rewards, advantages
    columns.safetensors        token columns that the trainer computed
    state/                     weights, optimizer and random state before the update, as in a checkpoint
    resolved.yaml              the config

It is committed as a checkpoint is: written under another name, flushed to disk, and renamed.
Shape letters: N trajectories, V their trained tokens in the order of trajectories.
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from hybridrl.batch import Minibatch, RankBatch
from hybridrl.errors import CheckpointError
from hybridrl.trainer import committed, saved_groups

CONFIG, STATE = "resolved.yaml", "state"
_COLUMNS = "columns.safetensors"
_KIND = "step bundle"
_SCALAR, _OPTIONAL = "scalar.", "advantage_N"


@dataclass(frozen=True, slots=True)
class Found:
    """What the trainer ranks computed from a batch."""

    loaded: Mapping[str, float]
    """Metrics of the whole batch."""

    steps: tuple[Mapping[str, Any], ...]
    """Loss, grad_norm, lr and metrics of each optimizer step, or its error."""

    columns: Mapping[str, np.ndarray]
    """Token columns, [V, ...]; `position` is the place of each token in its trajectory."""

    weights: tuple[Mapping[str, int], ...]
    """Checksums of the parameters of each rank after the last of these steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    why: str
    """The error that it was written for; "" if it was asked for."""

    batch: RankBatch
    """The batch with its blocks, as engines and reward gave them."""

    score_N: np.ndarray
    """float32: scores before they were shaped into rewards."""

    prompts: tuple[int, ...]
    """Index of the prompt of each group, from which the seeds of its answers follow."""

    first: int
    """Minibatch whose optimizer step is the first in `found`; `state` is that before it."""

    columns_are_given: bool
    """Whether the columns were computed with other weights than those of `state`, so that a replay takes them
    from here."""

    found: Found

    @property
    def step(self) -> int:
        return self.batch.step


def begin(unfinished: Path) -> None:
    """Make the folder that a bundle is written in; what a run that was killed left there is removed."""
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)


def write(unfinished: Path, folder: Path, bundle: Bundle, config: str) -> None:
    """Write a bundle into `unfinished`, which holds its state already, and rename that to `folder`.

    A bundle of the same name, of a step that is taken a second time, is replaced.
    """
    batch = bundle.batch
    scalars = {name: getattr(batch, name) for name in ("block_N", "row_N", "group_N", "reward_N")}
    scalars |= {} if batch.advantage_N is None else {_OPTIONAL: batch.advantage_N}
    scalars |= {f"{_SCALAR}{name}": values for name, values in batch.scalars.items()}
    scalars["score_N"] = bundle.score_N
    saved_groups.write(unfinished, scalars, batch.blocks, whole=True)
    columns = {name: np.ascontiguousarray(values) for name, values in bundle.found.columns.items()}
    save_file(columns, unfinished / _COLUMNS)
    (unfinished / CONFIG).write_text(config, "utf-8")
    facts = {
        "kind": _KIND,
        "step": bundle.step,
        "why": bundle.why,
        "prompts": bundle.prompts,
        "oldest": batch.oldest,
        "minibatches": [asdict(minibatch) for minibatch in batch.minibatches],
        "first": bundle.first,
        "columns_are_given": bundle.columns_are_given,
        "loaded": _plain(bundle.found.loaded),
        "steps": _plain(bundle.found.steps),
        "weights": bundle.found.weights,
    }
    state = committed.read(unfinished / STATE)["files"]
    known = {f"{STATE}/{name}": of_file["crc32"] for name, of_file in state.items()}
    shutil.rmtree(folder, ignore_errors=True)
    committed.commit(unfinished, folder, facts, known)


def read(folder: Path) -> Bundle:
    """
    Raises:
        CheckpointError: the folder holds no bundle, or a file is missing or damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder", fix="name a folder of bundles/ of a run")
    facts = committed.verify(folder)
    if facts.get("kind") != _KIND:
        raise CheckpointError(f"{folder} holds no step bundle", fix="name a folder of bundles/ of a run")
    scalars, blocks = saved_groups.read(folder)
    more = {name.removeprefix(_SCALAR): v for name, v in scalars.items() if name.startswith(_SCALAR)}
    batch = RankBatch(
        step=facts["step"],
        blocks=tuple(blocks),
        block_N=scalars["block_N"],
        row_N=scalars["row_N"],
        group_N=scalars["group_N"],
        reward_N=scalars["reward_N"],
        advantage_N=scalars.get(_OPTIONAL),
        minibatches=tuple(map(_minibatch, facts["minibatches"])),
        scalars=more,
        oldest=facts["oldest"],
    )
    return Bundle(
        why=facts["why"],
        batch=batch,
        score_N=scalars["score_N"],
        prompts=tuple(facts["prompts"]),
        first=facts["first"],
        columns_are_given=facts["columns_are_given"],
        found=Found(
            _number(facts["loaded"]),
            tuple(map(_number, facts["steps"])),
            load_file(folder / _COLUMNS),
            tuple(facts["weights"]),
        ),
    )


def delete_old(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` bundles of a run."""
    for old in sorted(path.parent for path in folder.glob(f"step_*/{committed.RECORD}"))[:-keep]:
        (old / committed.RECORD).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)


def _minibatch(fields: dict[str, Any]) -> Minibatch:
    rows = tuple(tuple(map(tuple, rank)) for rank in fields.pop("rows"))
    return Minibatch(rows=rows, **fields)


def _plain(value: Any) -> Any:
    """The value with numbers that JSON lacks as texts."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: inner if name == "error" else _number(inner) for name, inner in value.items()}
    return float(value) if isinstance(value, str) else value
