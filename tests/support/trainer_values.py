"""Tiny models, batches and setups for tests of the trainer, and the plain transformers version of a step."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybridrl.batch import Minibatch, RankBatch, TokenBlock
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import ActorConfig, CriticConfig, OptimizerConfig, TrainParallel
from hybridrl.models.spec import read
from hybridrl.trainer.saved_groups import select
from hybridrl.trainer.setup import PolicySetup

VOCAB = 37  # divides over no number of ranks that is tested
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama3": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {}),
    "qwen2_tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16, "num_key_value_heads": 1}),  # fewer heads than ranks of TP2
    "deep": ("Qwen3", {"head_dim": 16, "num_hidden_layers": 4, "tie_word_embeddings": True}),
    "odd": ("Llama", {"num_hidden_layers": 5}),
}
Shape = tuple[int, int, int] | TrainParallel
"""tp, pp, dp; or everything, with its dp."""


def make_model(folder: Path, family: str, seed: int = 0) -> Path:
    """A random model, with weights far enough from 0 that every part of it matters, in `folder`/`family`."""
    import transformers

    name, extra = FAMILIES[family]
    options = {"tie_word_embeddings": False, **SIZES, **extra}
    config = getattr(transformers, f"{name}Config")(**options)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(4.0)
    model.save_pretrained(folder / family)
    return folder / family


def load_plain(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def make_actor(
    *, precision: str | None = None, recompute: str = "none", overlap: bool = False, **optimizer: Any
) -> ActorConfig:
    options = {"lr": 1e-3, "weight_decay": 0.1, "clip_grad_norm": 0.5, "eps": 1e-4}
    actor = {"precision": precision, "recompute": recompute, "overlap": overlap}
    return ActorConfig.model_validate(actor | {"optimizer": options | optimizer})


def make_setup(rank: int, rendezvous: str, folder: Path, shape: Shape, **changes: Any) -> PolicySetup:
    values = {
        "actor": make_actor(),
        "algorithm": AlgorithmConfig(),
        "critic": CriticConfig(),
        "temperature": 0.8,
        "max_response_tokens": 16,
        "seed": 0,
        "num_optimizer_steps": 10,
        "timeout_s": 60.0,
    }
    return PolicySetup(
        rank=rank,
        rendezvous=rendezvous,
        parallel=parallel_of(shape),
        model=read(folder),
        model_folder=folder,
        **(values | changes),
    )


def parallel_of(shape: Shape) -> TrainParallel:
    if isinstance(shape, TrainParallel):
        return shape
    tp, pp, dp = shape
    return TrainParallel(tp=tp, pp=pp, dp=dp)


def make_block(count: int = 12, seed: int = 0) -> TokenBlock:
    """Answers of several lengths: one has a gap in its loss mask, one ends untrained, one is untrained."""
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(0, VOCAB, draw.integers(2, 5)).tolist() for _ in range(count)]
    responses = [draw.integers(0, VOCAB, draw.integers(3, 9)).tolist() for _ in range(count)]
    block = TokenBlock.from_answers(
        prompts, responses, [(-2 * draw.random(len(r))).tolist() for r in responses], 0
    )
    gap, tail, dead = block.row(1), block.row(2), block.row(3)
    block.loss_mask_T[gap.stop - 2] = block.loss_mask_T[tail.stop - 1] = False
    block.loss_mask_T[dead] = False
    block.columns["rollout_logp"][~block.loss_mask_T] = 0.0
    return block


def make_batch(minibatches: Sequence[Minibatch], count: int = 12, seed: int = 0, **changes: Any) -> RankBatch:
    """Trajectories in two blocks, in mixed order."""
    whole = make_block(count, seed)
    blocks = select(whole, range(0, count, 2)), select(whole, range(1, count, 2))
    index = np.arange(count)
    advantage_N = np.random.default_rng(seed + 1).normal(size=count).astype(np.float32)
    values = {
        "step": 1,
        "blocks": blocks,
        "block_N": index % 2,
        "row_N": index // 2,
        "group_N": index // 4,
        "reward_N": advantage_N,
        "advantage_N": advantage_N,
        "minibatches": tuple(minibatches),
    }
    return RankBatch(**(values | changes))


def make_minibatch(index: int, rows: Sequence[Sequence[Sequence[int]]], block: TokenBlock) -> Minibatch:
    """
    Args:
        rows: by data-parallel rank and microbatch: rows of `block`.
    """
    flat = [n for rank in rows for microbatch in rank for n in microbatch]
    num_tokens = sum(int(block.loss_mask_T[block.row(n)].sum()) for n in flat)
    return Minibatch(index, tuple(tuple(tuple(m) for m in rank) for rank in rows), num_tokens, len(flat))


def make_output_layer(vocab_size: int) -> tuple[Any, Any, Any, Any]:
    """Hidden states [R, H], an output layer [V, H], a target and a weight for each row."""
    import torch

    draw = torch.Generator().manual_seed(0)
    hidden_RH, weight_VH = (torch.randn(n, 5, generator=draw) for n in (7, vocab_size))
    return (
        hidden_RH,
        weight_VH,
        torch.randint(vocab_size, (7,), generator=draw),
        torch.randn(7, generator=draw),
    )


def make_logits(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of five rows, one of them nearly certain; targets; weights to sum the rows with."""
    draw = torch.Generator().manual_seed(0)
    logits_RV = 3 * torch.randn(5, vocab_size, generator=draw)
    logits_RV[4, 1] = 60.0
    target_R = torch.tensor([0, vocab_size - 1, vocab_size // 2, 2, 1])
    return logits_RV, target_R, torch.randn(5, generator=draw)


def plain_logp(model: torch.nn.Module, block: TokenBlock, temperature: float) -> list[torch.Tensor]:
    """Log-probabilities of the trained tokens of each row, one sequence at a time."""
    found = []
    for n in range(len(block)):
        row = block.row(n)
        token_T = torch.from_numpy(block.token_T[row].astype(np.int64))
        logits_TV = model(token_T[None]).logits[0].float() / temperature
        logp_T = logits_TV[:-1].log_softmax(-1).gather(1, token_T[1:, None])[:, 0]
        found.append(logp_T[torch.from_numpy(block.loss_mask_T[row][1:])])
    return found


def plain_collision(model: torch.nn.Module, block: TokenBlock, temperature: float) -> np.ndarray:
    """Sum of squared probabilities where a token is trained on, one sequence at a time."""
    found = []
    for n in range(len(block)):
        row = block.row(n)
        logits_TV = model(torch.from_numpy(block.token_T[row].astype(np.int64))[None]).logits[0]
        collision_T = (logits_TV.float() / temperature).softmax(-1).square().sum(-1)[:-1]
        found.append(collision_T[torch.from_numpy(block.loss_mask_T[row][1:])])
    return torch.cat(found).numpy()


def plain_steps(
    model: torch.nn.Module, block: TokenBlock, advantage_N: np.ndarray, setup: PolicySetup, steps: int
) -> Iterator[tuple[float, float]]:
    """Loss and gradient norm of PPO-clip steps on a whole block, by torch and transformers alone."""
    options = setup.actor.optimizer
    optimizer = plain_adamw(model, options)
    with torch.no_grad():
        old = plain_logp(model, block, setup.temperature)
    for _ in range(steps):
        optimizer.zero_grad()
        total = torch.zeros(())
        for logp, before, advantage in zip(
            plain_logp(model, block, setup.temperature), old, advantage_N.tolist()
        ):
            ratio = (logp - before).exp()
            total = total + torch.maximum(-ratio * advantage, -ratio.clamp(0.8, 1.2) * advantage).sum()
        loss = total / sum(len(logp) for logp in old)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_grad_norm)
        optimizer.step()
        yield loss.item(), norm.item()


def plain_adamw(model: torch.nn.Module, options: OptimizerConfig) -> torch.optim.AdamW:
    """As the trainer's: norms and biases are not decayed."""
    groups = [[p for p in model.parameters() if (p.dim() == 1) == vector] for vector in (False, True)]
    return torch.optim.AdamW(
        [
            {"params": groups[0], "weight_decay": options.weight_decay},
            {"params": groups[1], "weight_decay": 0.0},
        ],
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
    )
