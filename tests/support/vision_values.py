"""Batches whose prompts show pictures, and what transformers computes for them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trainer_scenarios as scenarios
import trainer_values as values

from hybridrl.batch import Minibatch, RankBatch, TokenBlock
from hybridrl.models import spec
from hybridrl.models.patches import grid, patches
from hybridrl.models.pictures import pictures_of, stored
from hybridrl.models.tiny_vision import vision_model
from hybridrl.models.vision import VisionSpec
from hybridrl.reshard.checkpoint import load_hf
from hybridrl.trainer.saved_groups import select

KINDS = {"qwen3_vl": 4, "qwen3_vl_moe": 4, "qwen2_5_vl": 14}
"""Kind of model -> its patch size."""

SIZES = (((1, 2), (3, 1)), ((2, 2),), (), ((1, 1),))
"""Rows and columns of tokens of the pictures of each prompt."""

SAMPLES = 3
COUNT = SAMPLES * len(SIZES)
WORDS = 13
"""Tokens that are text: the first ones of the vocabulary."""


def make_model(folder: Path, kind: str, seed: int = 0, depth: int = 3, **changes: Any) -> Path:
    """A small model of a kind, with four text layers."""
    sizes = {"depth": depth, "patch_size": KINDS[kind]}
    vision_model(folder / kind, kind, seed, text={"num_hidden_layers": 4}, tower=sizes, **changes)
    return folder / kind


def make_pictures(vision: VisionSpec, seed: int = 0) -> list[list[np.ndarray]]:
    """The pictures of each prompt."""
    draw, side = np.random.default_rng(seed), vision.token_pixels
    return [
        [draw.integers(0, 256, (rows * side, cols * side, 3), dtype=np.uint8) for rows, cols in sizes]
        for sizes in SIZES
    ]


def make_block(vision: VisionSpec, seed: int = 0) -> TokenBlock:
    """SAMPLES answers to each prompt, which share the arrays of its pictures."""
    draw = np.random.default_rng(seed)
    shown = make_pictures(vision, seed)
    prompts, responses = [], []
    pixels_N, sizes_N = np.empty(COUNT, object), np.empty(COUNT, object)
    for n, pictures in enumerate(shown):
        prompt = draw.integers(0, WORDS, 2).tolist()
        for picture in pictures:
            tokens = vision.tokens(*picture.shape[:2])
            prompt += [vision.image_start, *[vision.image_token] * tokens, *draw.integers(0, WORDS, 2)]
        pixels, sizes = stored(pictures)
        for row in range(n * SAMPLES, (n + 1) * SAMPLES):
            prompts.append([int(token) for token in prompt])
            responses.append(draw.integers(0, WORDS, draw.integers(3, 9)).tolist())
            pixels_N[row], sizes_N[row] = pixels, sizes
    logps = [(-2 * draw.random(len(response))).tolist() for response in responses]
    block = TokenBlock.from_answers(prompts, responses, logps, 0)
    columns = {**block.columns, "pixels": pixels_N, "picture_size": sizes_N}
    return TokenBlock(block.token_T, block.start_N, block.prompt_tokens_N, block.loss_mask_T, columns)


def with_turns(block: TokenBlock, vision: VisionSpec, seed: int = 0) -> TokenBlock:
    """The same, with a second turn: after its answer each row is shown a picture of its own, and goes on."""
    draw, side = np.random.default_rng(seed + 1), vision.token_pixels
    rows, masks = [], []
    pixels_N, sizes_N = block.column("pixels").copy(), block.column("picture_size").copy()
    for n in range(len(block)):
        size = (1 + n % 2, 1 + n % 3)
        own = draw.integers(0, 256, (size[0] * side, size[1] * side, 3), dtype=np.uint8)
        pixels_N[n], sizes_N[n] = stored([*pictures_of(pixels_N[n], sizes_N[n]), own])
        said = [vision.image_start, *[vision.image_token] * (size[0] * size[1]), *draw.integers(0, WORDS, 2)]
        again = draw.integers(0, WORDS, draw.integers(2, 5))
        rows.append(np.concatenate([block.token_T[block.row(n)], said, again]))
        masks.append(
            np.concatenate([block.loss_mask_T[block.row(n)], [False] * len(said), [True] * len(again)])
        )
    start_N = np.cumsum([0, *map(len, rows)])
    token_T, mask_T = np.concatenate(rows).astype(np.int32), np.concatenate(masks)
    logp_T, version_T = (
        np.where(mask_T, -1.0, 0.0).astype(np.float32),
        np.where(mask_T, 0, -1).astype(np.int32),
    )
    columns = {"rollout_logp": logp_T, "version": version_T, "pixels": pixels_N, "picture_size": sizes_N}
    return TokenBlock(token_T, start_N, block.prompt_tokens_N, mask_T, columns)


def make_batch(block: TokenBlock, minibatches: Sequence[Minibatch]) -> RankBatch:
    """The trajectories in two blocks."""
    index = np.arange(COUNT)
    advantage_N = np.random.default_rng(1).normal(size=COUNT).astype(np.float32)
    half = COUNT // 2
    return RankBatch(
        step=1,
        blocks=(select(block, range(half)), select(block, range(half, COUNT))),
        block_N=index // half,
        row_N=index % half,
        group_N=index // SAMPLES,
        reward_N=advantage_N,
        advantage_N=advantage_N,
        minibatches=tuple(minibatches),
    )


def split(index: int, dp: int, cuts: Sequence[int], block: TokenBlock) -> Minibatch:
    """All rows, every rank's in microbatches that begin at `cuts`."""
    ranks = [list(range(r, COUNT, dp)) for r in range(dp)]
    edges = [0, *(cut // dp for cut in cuts), COUNT]
    rows = [[rank[a:b] for a, b in zip(edges, edges[1:])] for rank in ranks]
    return values.make_minibatch(index, rows, block)


def learn(
    rank: int,
    rendezvous: scenarios.Rendezvous,
    folder: Path,
    shape: scenarios.Shape,
    cuts: tuple[int, ...],
    gradients: Path,
    out: Path,
    steps: int = 2,
    turns: bool = False,
    rows: Sequence[Sequence[Sequence[int]]] = (),
    **changes: Any,
) -> dict[str, Any]:
    """Log-probabilities, what `errors` takes of each gradient, steps on one minibatch, an export.

    Args:
        rows: each rank's, in microbatches; (): as `split` deals them.
    """
    vision = spec.read(folder).vision
    assert vision is not None
    block = make_block(vision)
    block = with_turns(block, vision) if turns else block
    with scenarios.policy(rank, rendezvous, folder, shape, pictures=True, **changes) as trained:
        logp_T = trained.logp(block)
        minibatches = [
            values.make_minibatch(i, rows, block) if rows else split(i, scenarios.dp_of(shape), cuts, block)
            for i in range(steps)
        ]
        batch = make_batch(block, minibatches)
        trained.load(batch)
        loss, norm, found = trained.gradients(0)
        layout = trained.backend.layout
        wanted = {name: torch.zeros_like(t) for name, t in trained.tensors().items()}
        load_hf(gradients, layout, rank, wanted)
        error = {name: _squares(g, wanted[name]) for name, g in found.items()}
        played = scenarios.play(trained, batch)
        trained.export(out)
    return {"logp_T": logp_T, "loss": loss, "norm": norm, "error": error, **played}


def halfway(
    rank: int, rendezvous: scenarios.Rendezvous, folder: Path, shape: scenarios.Shape, actor: Any, saved: Path
) -> dict[str, Any]:
    """A batch, a checkpoint, and a second batch."""
    first, second = _batches(folder, shape)
    with scenarios.policy(rank, rendezvous, folder, shape, actor=actor, pictures=True) as trained:
        scenarios.play(trained, first)
        trained.save(saved)
        return scenarios.play(trained, second)


def goes_on(
    rank: int, rendezvous: scenarios.Rendezvous, folder: Path, shape: scenarios.Shape, actor: Any, saved: Path
) -> dict[str, Any]:
    """The second batch from the checkpoint on."""
    _, second = _batches(folder, shape)
    with scenarios.policy(rank, rendezvous, folder, shape, actor=actor, pictures=True) as trained:
        trained.restore(saved)
        return scenarios.play(trained, second)


def _batches(folder: Path, shape: scenarios.Shape) -> list[RankBatch]:
    """Two of two minibatches each, on the same prompts."""
    vision = spec.read(folder).vision
    assert vision is not None
    blocks = [make_block(vision, seed) for seed in range(2)]
    return [
        make_batch(block, [split(i, scenarios.dp_of(shape), (4,), block) for i in range(2)])
        for block in blocks
    ]


def _squares(found: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """Squared lengths of the difference of a gradient, and of the right one."""
    return float((found - wanted).double().square().sum()), float(wanted.double().square().sum())


def errors(ranks: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Length of the difference of each gradient from the right one, relative to that, from what `learn`
    returns on every rank: a rank may have a few of its elements."""
    totals: dict[str, tuple[float, float]] = {}
    for rank in ranks:
        for name, (difference, right) in rank["error"].items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = before[0] + difference, before[1] + right
    return {name: (difference / max(right, 1e-18)) ** 0.5 for name, (difference, right) in totals.items()}


def load_plain(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )


def plain_logp(
    model: torch.nn.Module, block: TokenBlock, vision: VisionSpec, temperature: float
) -> Iterator[torch.Tensor]:
    """Log-probabilities of the trained tokens of each row, by transformers, one row at a time."""
    for n in range(len(block)):
        row = block.row(n)
        logp_T = row_logp(model, block, n, row.stop - row.start, vision, temperature)
        yield logp_T[torch.from_numpy(block.loss_mask_T[row])]


def row_logp(
    model: torch.nn.Module, block: TokenBlock, n: int, length: int, vision: VisionSpec, temperature: float
) -> torch.Tensor:
    """Log-probabilities of the first tokens of a row, 0 for the very first, if no placeholder can be
    sampled."""
    token_T = torch.from_numpy(block.token_T[block.row(n)][:length].astype(np.int64))
    pictures = pictures_of(block.columns["pixels"][n], block.columns["picture_size"][n])
    logits_TV = model(token_T[None], **shown(token_T, pictures, vision)).logits[0].float() / temperature
    logits_TV = logits_TV.index_fill(1, torch.tensor(vision.image_token), -1e30)
    logp_T = logits_TV[:-1].log_softmax(-1).gather(1, token_T[1:, None])[:, 0]
    return torch.cat([torch.zeros(1), logp_T])


def shown(
    token_T: torch.Tensor, pictures: Sequence[np.ndarray], vision: VisionSpec
) -> dict[str, torch.Tensor]:
    """Pictures as transformers' model takes them."""
    if not pictures:
        return {}
    return {
        "pixel_values": torch.cat([patches(torch.tensor(picture), vision) for picture in pictures]),
        "image_grid_thw": torch.tensor([grid(picture, vision) for picture in pictures]),
        "mm_token_type_ids": (token_T == vision.image_token).int()[None],
    }


def learn_plainly(folder: Path, out: Path, steps: int = 2, *, turns: bool = False) -> dict[str, Any]:
    """The same by transformers and torch; the gradients of the first step are a checkpoint."""
    vision, model = spec.read(folder).vision, load_plain(folder)
    assert vision is not None
    block, setup = make_block(vision), values.make_setup(0, "", folder, (1, 1, 1))
    block = with_turns(block, vision) if turns else block
    advantage_N = np.asarray(make_batch(block, []).advantage_N)
    optimizer = values.plain_adamw(model, setup.actor.optimizer)
    with torch.no_grad():
        old = list(plain_logp(model, block, vision, setup.temperature))
    reports = []
    for step in range(steps):
        optimizer.zero_grad()
        total = torch.zeros(())
        rows = zip(
            plain_logp(model, block, vision, setup.temperature), old, advantage_N.tolist(), strict=True
        )
        for logp, before, advantage in rows:
            ratio = (logp - before).exp()
            total = total + torch.maximum(-ratio * advantage, -ratio.clamp(0.8, 1.2) * advantage).sum()
        loss = total / sum(len(logp) for logp in old)
        loss.backward()
        if step == 0:
            _save_gradients(model, folder, out / "gradients")
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), setup.actor.optimizer.clip_grad_norm)
        optimizer.step()
        reports.append((loss.item(), norm.item()))
    model.save_pretrained(out / "trained")
    return {"logp": torch.cat(old).numpy(), "reports": reports}


def _save_gradients(model: Any, folder: Path, out: Path) -> None:
    """The gradients as the weights of a model folder."""
    holder = load_plain(folder)
    with torch.no_grad():
        for (name, weight), (_, trained) in zip(
            holder.named_parameters(), model.named_parameters(), strict=True
        ):
            assert trained.grad is not None or weight.numel() == 0, name
            weight.copy_(trained.grad)
    holder.save_pretrained(out)
