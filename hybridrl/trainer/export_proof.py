"""Computes log-probabilities twice: with the trainer from a checkpoint, with transformers from its export."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybridrl.batch import TokenBlock
from hybridrl.columns import PIXELS, SIZES
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.hf import HFLayout
from hybridrl.models.fused_experts import parts
from hybridrl.models.patches import grid, patches
from hybridrl.models.pictures import pictures_of
from hybridrl.models.spec import read
from hybridrl.models.vision import VisionSpec
from hybridrl.reshard.hf_files import Checkpoint
from hybridrl.reshard.rank_files import fill_whole
from hybridrl.trainer import base, committed
from hybridrl.trainer.base import Model
from hybridrl.trainer.score import Scorer, block_logp
from hybridrl.trainer.setup import RankSetup


def logp_of_checkpoint(
    checkpoint: Path, setup: RankSetup, export: Path, block: TokenBlock, *, temperature: float
) -> np.ndarray:
    """Log-probabilities of the trained tokens of a block, 0 at all others; float32 [T].

    Args:
        setup: setup of a group of one rank.
        export: exported folder; the weights of the checkpoint are rounded to its dtypes first.
    """
    backend = base.open(setup)
    try:
        with backend.scope():
            model = backend.build(trained=False)
            model.load(setup.model_folder)
            _fill(model, checkpoint, export)
            return block_logp(backend, Scorer(model, temperature), block)
    finally:
        backend.close()


def logp_of_folder(folder: Path, block: TokenBlock, *, temperature: float) -> np.ndarray:
    """The result of logp_of_checkpoint for a model folder, in fp32, one sequence at a time."""
    vision, model = read(folder).vision, plain_model(folder)
    logp_T = np.zeros(len(block.token_T), np.float32)
    for n in range(len(block)):
        row, (token_T, logits_TV) = block.row(n), plain_logits(model, block, n, vision)
        found_T = (logits_TV[:-1] / temperature).log_softmax(-1).gather(1, token_T[1:, None])[:, 0].numpy()
        logp_T[row.start + 1 : row.stop] = found_T
    return np.where(block.loss_mask_T, logp_T, np.float32(0))


def plain_model(folder: Path) -> Any:
    """The model of a folder as plain transformers has it, in fp32."""
    # Imported here because the import takes seconds.
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    vision = read(folder).vision
    kind = AutoModelForCausalLM if vision is None else AutoModelForImageTextToText
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def plain_logits(
    model: Any, block: TokenBlock, n: int, vision: VisionSpec | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of a trajectory of a block, int64 [T], and the logits that a plain model gives at each,
    [T, V]."""
    token_T = torch.from_numpy(block.token_T[block.row(n)].astype(np.int64))
    given = {} if vision is None else _pictures(block, n, token_T, vision)
    with torch.no_grad():
        return token_T, model(token_T[None], **given).logits[0]


def _pictures(
    block: TokenBlock, row: int, token_T: torch.Tensor, vision: VisionSpec
) -> dict[str, torch.Tensor]:
    """The pictures of a row as transformers' model takes them; {} if it has none."""
    if SIZES not in block.columns or not len(block.columns[SIZES][row]):
        return {}
    shown = pictures_of(block.columns[PIXELS][row], block.columns[SIZES][row])
    return {
        "pixel_values": torch.cat([patches(torch.tensor(picture), vision) for picture in shown]),
        "image_grid_thw": torch.tensor([grid(picture, vision) for picture in shown]),
        "mm_token_type_ids": (token_T == vision.image_token).int()[None],
    }


def _fill(model: Model, checkpoint: Path, export: Path) -> None:
    layout = committed.layout(committed.read(checkpoint), "policy")
    shards, tensors = model.layout.shards(0), model.tensors()
    if isinstance(layout, AdapterLayout):
        _add_adapters(model, checkpoint, layout)
    else:
        fill_whole(checkpoint, "policy", layout, shards, {name: tensors[name] for name in shards})
    files = Checkpoint(export, parts(layout.spec))
    dtypes = {shard.param: files.dtype(name) for name, shard in HFLayout(layout.spec).shards(0).items()}
    for name, shard in shards.items():
        tensors[name].copy_(tensors[name].to(dtypes[shard.param]))


def _add_adapters(model: Model, checkpoint: Path, layout: AdapterLayout) -> None:
    """Add the adapters of a checkpoint to the weights of a model that one rank holds alone."""
    alone, tensors = replace(layout, base=model.layout), model.tensors()
    shards = alone.shards(0)
    factors = {name: torch.zeros(shard.shape) for name, shard in shards.items()}
    fill_whole(checkpoint, "policy", layout, shards, factors)
    for name in factors:
        if name.endswith(".adapter.b"):
            stem = name.removesuffix("adapter.b")
            tensors[f"{stem}weight"].add_(layout.scale * (factors[name] @ factors[f"{stem}adapter.a"]))
