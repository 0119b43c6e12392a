"""Score centering with an engine's likeliest tokens, on trainer ranks and by torch and transformers alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trainer_scenarios as scenarios
import trainer_values as values

from hybridrl.answer_columns import head_columns
from hybridrl.batch import Minibatch, RankBatch, TokenBlock
from hybridrl.config.schema import AlgorithmConfig

CAP = 1.5
HEAD_TOKENS = 3


def with_heads(block: TokenBlock) -> TokenBlock:
    """The block with random heads; the sampled token is the second of each."""
    draw, token_U = np.random.default_rng(5), block.token_T[block.loss_mask_T]
    head_UK = (token_U[:, None] + np.array([-1, 0, 4])) % values.VOCAB
    p_UK = draw.dirichlet(np.ones(HEAD_TOKENS + 1), len(token_U))[:, 1:]
    heads = [(head_UK.astype(np.int32), np.log(p_UK).astype(np.float32))]
    return replace(block, columns={**block.columns, **head_columns(heads, block.loss_mask_T)})


def algorithm() -> AlgorithmConfig:
    loss = {"name": "score_centering", "cap": CAP, "head_tokens": HEAD_TOKENS}
    return AlgorithmConfig.model_validate({"loss": loss, "aggregate": "token_mean", "guards": "off"})


def steps(*on_rank: Any) -> list[dict[str, Any]]:
    """Reports of two steps on twelve rows; the arguments are the first of scenarios.two_steps."""
    return scenarios.two_steps(*on_rank, algorithm=algorithm(), batch_of=_batch)


def plain(folder: Path) -> Iterator[tuple[float, float]]:
    """Loss and gradient norm of the same two steps."""
    setup, model = values.make_setup(0, "", folder, (1, 1, 1)), values.load_plain(folder)
    batch = _batch([])
    blocks, advantage_N = batch.blocks, batch.advantage_N
    assert advantage_N is not None
    optimizer = values.plain_adamw(model, setup.actor.optimizer)
    count = sum(int(block.loss_mask_T.sum()) for block in blocks)
    for _ in range(2):
        optimizer.zero_grad()
        terms = [
            float(advantage) * _centred(model, blocks[b], int(row), setup.temperature).sum()
            for b, row, advantage in zip(batch.block_N, batch.row_N, advantage_N, strict=True)
        ]
        loss = -torch.stack(terms).sum() / count
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), setup.actor.optimizer.clip_grad_norm)
        optimizer.step()
        yield loss.item(), norm.item()


def _batch(minibatches: list[Minibatch]) -> RankBatch:
    batch = values.make_batch(minibatches)
    return batch.with_blocks([with_heads(block) for block in batch.blocks])


def _centred(model: torch.nn.Module, block: TokenBlock, row: int, temperature: float) -> torch.Tensor:
    """w log p of each trained token of a row, minus its expectation over the engine's distribution, in which
    the tokens outside the head have one ratio of policy and engine."""
    here = block.row(row)
    mask = torch.from_numpy(block.loss_mask_T[here][1:])
    token_T = torch.from_numpy(block.token_T[here].astype(np.int64))
    log_p_UV = (model(token_T[None]).logits[0, :-1].float() / temperature).log_softmax(-1)[mask]
    head_UK, log_q_UK, log_q_U = (
        torch.from_numpy(np.asarray(block.columns[name][here][1:][mask.numpy()]))
        for name in ("engine_head", "engine_head_logp", "rollout_logp")
    )
    logp_U = log_p_UV.gather(1, token_T[1:][mask][:, None])[:, 0]
    head_logp_UK = log_p_UV.gather(1, head_UK.long())
    p_UK, q_UK = head_logp_UK.detach().exp(), log_q_UK.exp()
    rho_U = (1 - q_UK.sum(1)) / (1 - p_UK.sum(1))
    alpha_U = rho_U * (1 / rho_U).clamp(max=CAP)
    centre_UK = q_UK * (p_UK / q_UK).clamp(max=CAP) - alpha_U[:, None] * p_UK
    weight_U = (logp_U.detach() - log_q_U).exp().clamp(max=CAP)
    return weight_U * logp_U - (centre_UK * head_logp_UK).sum(1)
