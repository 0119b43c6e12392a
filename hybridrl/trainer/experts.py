"""Which experts a token goes to: scores, choices, penalties, and choices that are kept for later passes.

Sources: DeepSeek-AI 2024, "DeepSeek-V2", arXiv:2405.04434, section 2.1.3 (groups), and "DeepSeek-V3",
arXiv:2412.19437, section 2.1.2 (sigmoid scores, and a bias that affects the choice but not the weights).
Shape letters: T packed tokens, N tokens that this rank routes (T / tp with sequence parallelism), E experts
of a layer, K experts chosen for a token, G groups of experts, B tokens of all blocks of a batch, S sequences
of a microbatch, L layers of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hybridrl.batch import TokenBlock
from hybridrl.errors import ConfigError
from hybridrl.models.spec import ModelSpec
from hybridrl.trainer.places import Packing


@dataclass(frozen=True, slots=True)
class Penalties:
    """Weights of the auxiliary losses of a router. Each loss is a sum over the sequences of a microbatch."""

    balance: float = 0.0
    """Weight of DeepSeek-V3's sequence-wise balance loss: it penalises experts used often in a sequence."""

    z: float = 0.0
    """Weight of the z-loss: squared log of the sum of exp(logits), mean over a sequence (ST-MoE,
    arXiv:2202.08906, 2.2)."""


class Choices:
    """The trainer's expert choices for the tokens of a batch on one layer, recorded once, then replayed."""

    def __init__(self, num_tokens: int, num_chosen: int, device: torch.device) -> None:
        self._expert_BK = torch.full((num_tokens, num_chosen), -1, dtype=torch.int16, device=device)
        self._complete = False

    def settle(self, source_N: Tensor, chosen_NK: Tensor) -> Tensor:
        """The experts to use. Until `complete` is called, the chosen ones are recorded and returned.

        After that the recorded ones are returned. Filler, and tokens without a record, always use the chosen
        ones.
        """
        if not self._complete:
            real_N = source_N >= 0
            self._expert_BK[source_N[real_N]] = chosen_NK[real_N].to(torch.int16)
            return chosen_NK
        kept_NK = self._expert_BK[source_N.clamp(min=0)].long()
        return torch.where((source_N >= 0).unsqueeze(1) & (kept_NK >= 0), kept_NK, chosen_NK)

    def complete(self, group: dist.ProcessGroup | None) -> None:
        """Stop recording. With a group this is *collective*, and its ranks exchange what they recorded."""
        self._complete = True
        if group is not None:
            whole_BK = self._expert_BK.int()  # gloo has no shorter integers
            dist.all_reduce(whole_BK, dist.ReduceOp.MAX, group)
            self._expert_BK.copy_(whole_BK)


class EngineExperts:
    """The engine's expert choices for the tokens of a batch, on all layers."""

    def __init__(self, blocks: Sequence[TokenBlock]) -> None:
        """
        Raises:
            ConfigError: a block has no column experts.
        """
        found = [block.columns["experts"] for block in blocks if "experts" in block.columns]
        if len(found) < len(blocks):
            raise ConfigError(
                "these answers do not say which experts the engine sent their tokens to",
                where="actor.moe.router_replay",
                fix="actor.moe.router_replay=old_logp",
            )
        self._blocks, self._first_token = found, np.cumsum([0, *map(len, found)])
        self._seen: tuple[Packing, Tensor] | None = None

    def of(self, packing: Packing) -> Tensor:
        """Experts of the tokens of a microbatch, int16 [T, L, K], on the tokens' device; -1 if unknown."""
        if self._seen is None or self._seen[0] is not packing:
            self._seen = packing, self._gathered(packing.source_T)
        return self._seen[1]

    def _gathered(self, source_T: Tensor) -> Tensor:
        """Experts of some tokens, int16 [T, L, K]. Only these are copied out of the shared object store."""
        from_T = source_T.cpu().numpy()
        block_T = np.searchsorted(self._first_token, from_T, side="right") - 1  # -1: filler
        expert_TLK = np.full((len(from_T), *self._blocks[0].shape[1:]), -1, np.int16)
        for number, (block, first) in enumerate(zip(self._blocks, self._first_token, strict=False)):
            at = np.flatnonzero(block_T == number)
            expert = block[from_T[at] - first].astype(np.int16)
            expert_TLK[at] = np.where(expert == np.iinfo(block.dtype).max, np.int16(-1), expert)
        return torch.from_numpy(expert_TLK).to(source_T.device)


class EngineChoices:
    """Replays the engine's choices for the tokens of a batch on one layer."""

    def __init__(self, experts: EngineExperts, router: "RouterOfTokens", layer: int) -> None:
        self._experts, self._router, self._layer = experts, router, layer
        self.count_2 = torch.zeros(2, dtype=torch.float64)
        """Number of tokens for which router and engine differ, and of all tokens that were compared."""

    def settle(self, source_N: Tensor, chosen_NK: Tensor) -> Tensor:
        """The experts to use: the engine's choice, or the router's for filler and tokens the engine did not
        run."""
        kept_NK = self._router.own(self._experts.of(self._router.packing)[:, self._layer]).long()
        known_N = kept_NK.amin(1) >= 0
        differs_N = (kept_NK.sort(1).values != chosen_NK.sort(1).values).any(1) & known_N
        self.count_2 += torch.stack([differs_N.sum(), known_N.sum()]).cpu()
        return torch.where(known_N.unsqueeze(1), kept_NK, chosen_NK)


class RouterOfTokens(Protocol):
    """A router of one layer on this rank, as `Routing` controls it."""

    packing: Packing
    """Packing of the present microbatch."""

    layer_number: int
    """Number of the layer in the whole model, from 1."""

    topk: int
    choices: "Choices | EngineChoices | None"
    penalties: Penalties
    count_E: Tensor
    """Tokens that went to each expert in passes with gradients."""

    penalty: Tensor
    """Sum of the auxiliary losses in passes with gradients."""

    @property
    def weight(self) -> Tensor:
        """[E, hidden size]"""
        ...

    def own(self, value_T: Tensor) -> Tensor:
        """The part of a tensor over T that this rank routes."""
        ...

    def count_from_zero(self) -> None: ...


def sequence_of_tokens(packing: Packing, context_size: int) -> Tensor:
    """Which of the packed sequences each token of this rank belongs to, int64 [T].

    Args:
        context_size: number of context-parallel ranks that share every sequence.
    """
    own_S = torch.tensor([length // context_size for count, length in packing.runs for _ in range(count)])
    return torch.repeat_interleave(torch.arange(len(own_S)), own_S).to(packing.source_T.device)


def penalty(
    weights: Penalties,
    seq_N: Tensor,
    logits_NE: Tensor,
    score_NE: Tensor,
    map_NE: Tensor,
    group: dist.ProcessGroup,
) -> Tensor:
    """This rank's part of the auxiliary losses. *Collective* over the ranks that share the sequences.

    The balance loss of a sequence is the sum over experts of f_e P_e: f_e is E / K times the fraction of its
    tokens routed to e, and P_e the mean over its tokens of the score of e divided by the sum of all scores.
    f_e gets no gradient.
    """
    num_experts = score_NE.shape[1]
    size = torch.tensor([int(seq_N.max()) + 1 if len(seq_N) else 0], device=seq_N.device)
    dist.all_reduce(size, dist.ReduceOp.MAX, group)
    used = torch.cat([map_NE.float(), torch.ones_like(score_NE[:, :1])], dim=1)
    used_SE = used.new_zeros(int(size), num_experts + 1).index_add(0, seq_N, used)
    dist.all_reduce(used_SE, group=group)
    used_SE, length_S1 = used_SE[:, :-1], used_SE[:, -1:].clamp(min=1)
    num_chosen = int(map_NE[0].sum()) if len(map_NE) else 1
    often_SE = used_SE * num_experts / (num_chosen * length_S1)
    likely_NE = score_NE / score_NE.sum(1, keepdim=True)
    balance = (often_SE[seq_N] * likely_NE / length_S1[seq_N]).sum()
    z = (logits_NE.float().logsumexp(1).square() / length_S1[seq_N, 0]).sum()
    return weights.balance * balance + weights.z * z


def scores(model: ModelSpec, logits_NE: Tensor) -> Tensor:
    """Scores of the experts in [0, 1], float32 [N, E]."""
    logits_NE = logits_NE.float()
    return logits_NE.sigmoid() if model.router_score == "sigmoid" else logits_NE.softmax(-1)


def choose(model: ModelSpec, score_NE: Tensor, bias_E: Tensor | None) -> Tensor:
    """Experts of every token, int64 [N, K], in no particular order.

    With groups, the best groups are chosen first, then experts in them. A group's score is that of its best
    expert with softmax scores, and the sum of its best two with sigmoid scores.
    """
    if bias_E is not None:
        score_NE = score_NE + bias_E
    if model.router_groups > 1:
        group_NGE = score_NE.unflatten(1, (model.router_groups, -1))
        best = 2 if model.router_score == "sigmoid" else 1
        merit_NG = group_NGE.topk(best, dim=2).values.sum(2)
        open_NG = torch.zeros_like(merit_NG, dtype=torch.bool)
        open_NG.scatter_(1, merit_NG.topk(model.router_top_groups, dim=1).indices, True)
        score_NE = group_NGE.masked_fill(~open_NG.unsqueeze(2), -torch.inf).flatten(1)
    return score_NE.topk(model.experts_per_token, dim=1).indices


def weigh(model: ModelSpec, score_NE: Tensor, chosen_NK: Tensor) -> Tensor:
    """Weight of each chosen expert's output, [N, K]."""
    weight_NK = score_NE.gather(1, chosen_NK)
    if model.router_normalizes:
        weight_NK = weight_NK / (weight_NK.sum(1, keepdim=True) + 1e-20)
    return weight_NK * model.router_scale
