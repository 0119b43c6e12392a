"""Exports a checkpoint of a run as a Hugging Face folder, without workers, and proves that it is the policy.

The proof computes log-probabilities of some of the run's prompts twice, in fp32 and in this process: by
the trainer on one rank, with the weights of the checkpoint, and by plain transformers from the new folder.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from hybridrl.batch import TokenBlock
from hybridrl.config.load import LoadedConfig, load, load_as
from hybridrl.config.run_folder import refuse_unwritable
from hybridrl.config.sft_rm import RMConfig, SFTConfig
from hybridrl.config.training import ActorConfig, TrainParallel
from hybridrl.data.pictures import PictureFormat
from hybridrl.data.source import load_source
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.errors import ConfigError, RunFolderError
from hybridrl.launch.model_folders import in_folders
from hybridrl.launch.pictures import picture_format
from hybridrl.launch.shape import RunFiles
from hybridrl.models import spec
from hybridrl.models.pictures import picture_columns
from hybridrl.observe.progress import progress
from hybridrl.trainer import adapters, checkpoints, committed, export
from hybridrl.trainer.export_proof import logp_of_checkpoint, logp_of_folder
from hybridrl.trainer.setup import RankSetup
from hybridrl.types import Prompt

TOLERANCE = 1e-4
"""Largest difference of a log-probability, in nats, that counts as rounding."""

_PROMPTS, _TOKENS = 8, 256
"""Prompts that are compared, and how many of the first tokens of each."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A model folder that was made of a checkpoint."""

    step: int
    checkpoint: Path
    folder: Path
    config: LoadedConfig
    """Config of the run, with model names replaced by folders."""

    passed_over: list[str]
    """Newer checkpoints that were not taken, and why."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The difference between trainer and export."""

    num_tokens: int
    max_abs_diff: float

    @property
    def holds(self) -> bool:
        return self.max_abs_diff <= TOLERANCE


def export_run(run: Path, *, step: int | None, to: Path | None, dtype: torch.dtype | None = None) -> Exported:
    """Write the policy of a checkpoint of a run as a model folder.

    Args:
        step: step of the checkpoint; None: the newest.
        to: the new folder; None: exports/step_... in the run folder.
        dtype: dtype of all tensors; None: that of each in model.path.

    Raises:
        RunFolderError: `run` holds no run, or the folder is there already.
        CheckpointError: the checkpoint of `step` is not there or damaged, none is undamaged, or it is of
            another model than model.path.
    """
    files, config = _files(run), _config(run)
    base = config.config.model.path
    refuse_unwritable(to or files.exports, fix="choose another folder with --to")
    with progress("export", "checksums of the checkpoint"):
        checkpoint, passed_over = _checkpoint(files, step, base)
    folder = to or files.exports / checkpoint.folder.name
    with progress("export", f"step {checkpoint.step} to {folder}", "files") as advance:
        export.export(checkpoint.folder, folder, base, dtype=dtype, verified=True, advance=advance)
    return Exported(checkpoint.step, checkpoint.folder, folder, config, passed_over)


def export_adapters(run: Path, *, step: int | None, to: Path | None) -> Exported:
    """Write the adapters of a checkpoint of a run in the format of PEFT.

    Args:
        step: step of the checkpoint; None: the newest.
        to: the new folder; None: exports/step_...-adapters in the run folder.

    Raises:
        RunFolderError: `run` holds no run, or the folder is there already.
        CheckpointError: as export_run, or it holds no adapters.
    """
    files, config = _files(run), _config(run)
    base = config.config.model.path
    refuse_unwritable(to or files.exports, fix="choose another folder with --to")
    checkpoint, passed_over = _checkpoint(files, step, base)
    folder = to or files.exports / f"{checkpoint.folder.name}-adapters"
    adapters.write_peft(checkpoint.folder, folder, base, verified=True)
    return Exported(checkpoint.step, checkpoint.folder, folder, config, passed_over)


def prove(exported: Exported) -> Proof:
    """Compare the model folder with the checkpoint that it was made of.

    Raises:
        CheckpointError: a file of the checkpoint is not what was written.
        DataError, ConfigError: the data of the run are not there any more.
    """
    committed.verify(exported.checkpoint)
    block, temperature = _block(exported.config), exported.config.config.rollout.temperature
    with tempfile.TemporaryDirectory() as rendezvous:
        setup = _alone(exported.config, Path(rendezvous))
        ours = logp_of_checkpoint(exported.checkpoint, setup, exported.folder, block, temperature=temperature)
    theirs = logp_of_folder(exported.folder, block, temperature=temperature)
    trained = block.loss_mask_T
    return Proof(int(trained.sum()), float(np.abs(ours - theirs)[trained].max()))


def _files(run: Path) -> RunFiles:
    if not (run / "resolved.yaml").is_file():
        raise RunFolderError(
            f"{run} holds no run", where=str(run), fix="give the folder of one, as runs/NAME"
        )
    return RunFiles(run)


def _config(run: Path) -> LoadedConfig:
    """
    Raises:
        RunFolderError: it is a run of training on examples.
    """
    for command, kind in (("sft", SFTConfig), ("rm", RMConfig)):
        if _is_of(kind, run):
            raise RunFolderError(
                f"{run} is a run of `hybridrl {command}`, export makes models of reinforcement learning",
                where=str(run / "resolved.yaml"),
                fix=f"its own model is {RunFiles(run).export}; --resume writes it",
            )
    return in_folders(load(run / "resolved.yaml"))


def _is_of(kind: type[SFTConfig | RMConfig], run: Path) -> bool:
    try:
        load_as(kind, run / "resolved.yaml")
    except ConfigError:
        return False
    return True


def _checkpoint(files: RunFiles, step: int | None, base: str) -> tuple[checkpoints.Checkpoint, list[str]]:
    """The checkpoint to export, fully verified, and a line for the user about each newer one."""
    if step is None:
        choice = checkpoints.newest_undamaged(files.checkpoints)
        found, passed_over = choice.taken(files.checkpoints), choice.describe()
    else:
        found, passed_over = checkpoints.undamaged(files.checkpoints, step), []
    committed.refuse_other_model(found.folder, found.record, spec.read(base))
    return found, passed_over


def _block(loaded: LoadedConfig) -> TokenBlock:
    """The first prompts of the run's data; all their tokens but the first are compared."""
    cfg, pictures = loaded.config, picture_format(loaded.config)
    source = load_source(
        cfg.data.train,
        cfg.data,
        load_tokenizer(cfg.model.path),
        split="train",
        seed=cfg.run.seed,
        max_prompt_tokens=cfg.rollout.max_prompt_tokens,
        where=loaded.where("data.train"),
        pictures=pictures,
    )
    if pictures is not None:
        return _of_pictures(source.take(_PROMPTS), pictures)
    prompts = [prompt.token_ids[:_TOKENS] for prompt in source.take(_PROMPTS)]
    longer = [tokens for tokens in prompts if len(tokens) > 1]
    first, rest = [list(tokens[:1]) for tokens in longer], [list(tokens[1:]) for tokens in longer]
    return TokenBlock.from_answers(first, rest, [[0.0] * len(tokens) for tokens in rest], 0)


def _of_pictures(prompts: Sequence[Prompt], pictures: PictureFormat) -> TokenBlock:
    """Whole prompts, because a picture cannot be cut short."""
    ids = [list(prompt.token_ids) for prompt in prompts]
    rest = [tokens[1:] for tokens in ids]
    block = TokenBlock.from_answers([tokens[:1] for tokens in ids], rest, [[0.0] * len(r) for r in rest], 0)
    return replace(
        block,
        prompt_tokens_N=np.array([len(tokens) for tokens in ids], np.int32),
        columns={**block.columns, **picture_columns([pictures.arrays(prompt) for prompt in prompts])},
    )


def _alone(loaded: LoadedConfig, rendezvous: Path) -> RankSetup:
    """Setup of a single rank that holds the whole policy, in fp32."""
    cfg = loaded.config
    return RankSetup(
        rank=0,
        rendezvous=f"file://{rendezvous.resolve() / 'alone'}",
        parallel=TrainParallel(dp=1),
        model=spec.read(cfg.model.path),
        model_folder=Path(cfg.model.path),
        actor=ActorConfig(
            backend=cfg.actor.backend, precision="fp32", microbatch_tokens=cfg.actor.microbatch_tokens
        ),
        seed=cfg.run.seed,
        timeout_s=cfg.cluster.step_timeout_s,
    )
