"""`hybridrl why RUN --mismatch`: the difference of trainer and engine in the newest step bundle of a run."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from hybridrl.batch import Minibatch, RankBatch
from hybridrl.config.run_folder import is_held
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.errors import CheckpointError
from hybridrl.launch.shape import RunFiles
from hybridrl.replay import mismatch
from hybridrl.replay.command import setup_of, trained
from hybridrl.replay.mismatch import Recorded, Shifts, Variant
from hybridrl.replay.ranks import OLD_LOGP, log_probabilities
from hybridrl.replay.sampling import shifts
from hybridrl.trainer import bundles, export
from hybridrl.trainer.bundles import Bundle
from hybridrl.trainer.checkpoints import named, whole_checkpoints
from hybridrl.trainer.export_proof import plain_logits, plain_model
from hybridrl.trainer.linear_logprob import NEVER
from hybridrl.trainer.setup import PolicySetup
from hybridrl.verify.ranks import RankGroup

_MOST_ROWS = 256
"""Most trajectories whose logits are computed to find how an engine samples."""


def explained(run: Path) -> list[str]:
    """Lines about the difference, of the newest bundle that has both log-probabilities.

    Raises:
        CheckpointError: the run has no such bundle.
        ModelError: its model is not here.
    """
    folder = _newest(run)
    bundle = bundles.read(folder)
    setup, timeout_s = setup_of(folder)
    recorded = _recorded(bundle, RunFiles(run).checkpoints, setup)
    with RankGroup(setup.parallel.num_ranks, timeout_s, setup.actor.backend) as group:

        def compute(variant: Variant) -> np.ndarray:
            state = folder / bundles.STATE
            if variant.version is not None:
                state = named(RunFiles(run).checkpoints, variant.version)
            batch = alone(bundle.batch) if variant.alone else bundle.batch
            return group(log_probabilities, _as(variant, setup), state, batch)

        found = mismatch.split(recorded, compute, cache(lambda: _shifts(folder, bundle, setup)))
    return [f"step {bundle.step} of {run}", *mismatch.lines(recorded, found)]


def _newest(run: Path) -> Path:
    found = sorted(path.parent for path in RunFiles(run).bundles.glob("step_*/COMMITTED"))
    if found:
        return found[-1]
    goes_on = " so far" if is_held(run) else ""
    raise CheckpointError(
        f"{run} has no step bundle{goes_on}, whose log-probabilities could be compared",
        where=str(RunFiles(run).bundles),
        fix="run.bundle.every=N writes one every N steps",
    )


def _recorded(bundle: Bundle, checkpoints: Path, setup: PolicySetup) -> Recorded:
    trainer_V = bundle.found.columns.get(OLD_LOGP)
    names = {name for block in bundle.batch.blocks for name in block.columns}
    if trainer_V is None or "rollout_logp" not in names or bundle.columns_are_given:
        lacks = (
            "was written after the weights had changed" if bundle.columns_are_given else "lacks one of both"
        )
        raise CheckpointError(
            f"the bundle of step {bundle.step} {lacks}: log-probabilities of trainer and engine are needed",
            fix="run.bundle.every=N writes one before the first optimizer step",
        )
    count_N = trained(bundle.batch)
    return Recorded(
        engine_V=_column(bundle.batch, "rollout_logp").astype(np.float64),
        trainer_V=trainer_V.astype(np.float64),
        version_V=_column(bundle.batch, "version").astype(np.int64),
        trajectory_V=np.repeat(np.arange(len(count_N)), count_N),
        current=bundle.step - 1,
        has_experts="experts" in names,
        kept_versions=frozenset(one.step for one in whole_checkpoints(checkpoints)),
        other_tokens_N=_other_tokens(bundle.batch, setup.model_folder),
    )


def _column(batch: RankBatch, name: str) -> np.ndarray:
    """A token column at the trained tokens, [V]."""
    rows = [
        (batch.blocks[b], batch.blocks[b].row(r)) for b, r in zip(batch.block_N, batch.row_N, strict=True)
    ]
    return np.concatenate([block.column(name)[row][block.loss_mask_T[row]] for block, row in rows])


def _other_tokens(batch: RankBatch, model: Path) -> np.ndarray:
    """Whether the text of a trajectory, read again, gives other tokens; bool [N]."""
    tokenizer = load_tokenizer(str(model))
    rows = zip(batch.block_N, batch.row_N, strict=True)
    token_lists = [batch.blocks[b].token_T[batch.blocks[b].row(r)].tolist() for b, r in rows]
    texts = tokenizer.hf.batch_decode(
        token_lists, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    again = tokenizer.encode(texts, add_special_tokens=False)
    return np.array([here != there for here, there in zip(token_lists, again, strict=True)])


def alone(batch: RankBatch) -> RankBatch:
    """The batch with every trajectory in a microbatch of its own."""

    def parted(minibatch: Minibatch) -> Minibatch:
        rows = tuple(tuple((n,) for rows in rank for n in rows) for rank in minibatch.rows)
        most = max(map(len, rows))
        return replace(minibatch, rows=tuple(_filled(rank, most) for rank in rows))

    return replace(batch, minibatches=tuple(map(parted, batch.minibatches)))


def _filled(rank: Sequence[tuple[int, ...]], most: int) -> tuple[tuple[int, ...], ...]:
    return (*rank, *((),) * (most - len(rank)))


def _as(variant: Variant, setup: PolicySetup) -> PolicySetup:
    actor = setup.actor
    replayed = "rollout" if variant.experts == "engine" else "none"
    actor = actor.model_copy(update={"moe": actor.moe.model_copy(update={"router_replay": replayed})})
    if variant.precision == "fp32":
        actor = actor.model_copy(update={"precision": "fp32"})
    return replace(setup, actor=actor)


def _shifts(folder: Path, bundle: Bundle, setup: PolicySetup) -> Shifts:
    """What ways to sample would add to each token, by plain transformers; 0 beyond the first trajectories."""
    batch, found = bundle.batch, list[dict[str, np.ndarray]]()
    with tempfile.TemporaryDirectory(prefix="hybridrl-mismatch-") as name:
        export.export(folder / bundles.STATE, Path(name, "model"), setup.model_folder, verified=True)
        model = plain_model(Path(name, "model"))
    vision = setup.model.vision
    for n, (b, r) in enumerate(zip(batch.block_N, batch.row_N, strict=True)):
        block, at_T = batch.blocks[b], np.flatnonzero(batch.blocks[b].loss_mask_T[batch.blocks[b].row(r)])
        if n < _MOST_ROWS:
            token_T, logits_TV = plain_logits(model, block, int(r), vision)
            logits_TV[:, list(setup.banned)] = NEVER
            ways = shifts(logits_TV[at_T - 1] / setup.temperature, token_T[at_T])
            found.append({way: shift.double().numpy() for way, shift in ways.items()})
        else:
            found.append({way: np.zeros(len(at_T)) for way in found[0]})
    return {way: np.concatenate([row[way] for row in found]) for way in found[0]}
